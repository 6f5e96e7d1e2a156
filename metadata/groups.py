"""One classic consumer group as a pure state machine: a request or the passing of time goes in, effects come out.

The theory. A group is a set of members and a *generation*. Whenever the set or what a member wants changes, the
group rebalances: it collects a JoinGroup from everybody (a barrier with a deadline), counts one more generation,
elects a leader and a protocol, and hands the leader the list of members; then it collects a SyncGroup from everybody,
and the leader's carries the assignments, which makes the generation stable. Joins and syncs therefore *park*: each
carries a ticket, and an effect answers the ticket later, exactly once. :data:`metadata.group_states.RULES` is
the table of states, :mod:`metadata.group_roster` the set of members, :mod:`metadata.group_admission` who may join.

Two kinds of members exist. A dynamic member is its connection's: it gets an id, and is gone when it leaves, when its
session ends, or when it misses a barrier. A static member (KIP-345) is its ``group_instance_id``: it outlives its
process until its session ends, and its successor takes over its place under a new member id without a rebalance.

Time is milliseconds of any clock that never goes back. ``wake_ms`` is a lower bound of the next deadline: the driver
calls :meth:`Group.expire` then. A heartbeat moves deadlines only later, so it never moves ``wake_ms``.

Source: Kafka's GroupMetadataManager and ClassicGroup (3.9, 4.x); KIP-345, KIP-394, KIP-559, KIP-814. Differences, all
in favour of a client that would have waited forever or been turned away needlessly: whoever parks is always answered
(Kafka forgets a second join or sync of the same member, and the sync of one that left), and a static member's
successor is admitted to a full group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from metadata.group_admission import refuse_join
from metadata.group_model import (
    GroupDescription,
    GroupRecord,
    JoinedMember,
    JoinGroup,
    JoinGroupAnswer,
    LeavingMember,
    SyncGroup,
    SyncGroupAnswer,
)
from metadata.group_roster import Member, Roster, unique_protocols
from metadata.group_states import RULES, Effects, GroupLimits, GroupState, InitialDelay, Rejoin
from metadata.model import Refusal

NEW_MEMBER_JOIN_MS = 300_000
"""A member that never had an answer cannot heartbeat: its first join may park so long (Kafka's new member timeout)."""


class Group:
    """One group. Methods named after requests take a ticket or answer at once, and never raise for what clients do."""

    def __init__(self, group_id: str, limits: GroupLimits) -> None:
        self.group_id = group_id
        self.state = GroupState.EMPTY
        self.generation_id = 0
        self.protocol_type = ""
        self.protocol_name = ""
        self.leader_id = ""
        self.roster = Roster()
        self.pending: dict[str, int] = {}
        """Ids handed out with MEMBER_ID_REQUIRED that have not joined yet, with their deadlines."""
        self.wake_ms: int | None = None
        self._limits = limits
        self._assigned_bytes = 0
        self._join_deadline_ms: int | None = None
        self._sync_deadline_ms: int | None = None
        self._initial: InitialDelay | None = None
        """This rebalance began with an empty group: it waits out its delay however many have joined."""

    @classmethod
    def restore(cls, record: GroupRecord, limits: GroupLimits, now_ms: int) -> Group:
        """The group as it was made durable; its members have a whole session to be heard of again."""
        group = cls(record.group_id, limits)
        group.generation_id = record.generation_id
        group.protocol_type = record.protocol_type
        group.protocol_name = record.protocol_name
        for kept in record.members:
            member = Member.restored(kept)
            group.roster.add(member)
            group._touch(member, now_ms)
        if group.roster.members:
            group.state = GroupState.STABLE
            group.leader_id = record.leader_id
            group._assigned_bytes = sum(len(kept.assignment) for kept in record.members)
            if len(group.roster.members) > limits.members_max:
                group._prepare(Effects(), now_ms)
        return group

    @property
    def held_bytes(self) -> int:
        """Names, protocol metadata and assignments of its members."""
        return self.roster.held_bytes + self._assigned_bytes

    def record(self, state_changed_ms: int) -> GroupRecord:
        """What must survive a restart."""
        return GroupRecord(
            self.group_id,
            self.generation_id,
            self.protocol_type,
            self.protocol_name,
            self.leader_id,
            tuple(member.record() for member in self.roster.members.values()),
            state_changed_ms,
        )

    def describe(self, with_members: bool = True) -> GroupDescription:
        """As Kafka does: protocol, metadata and assignments are shown only while they are agreed on."""
        name = self.protocol_name if self.state is GroupState.STABLE else ""
        members = self.roster.described(name or None) if with_members else ()
        return GroupDescription(self.group_id, self.state.value, self.protocol_type, name, members)

    # --- requests ---------------------------------------------------------------------------------------

    def join(self, join: JoinGroup, ticket: int, new_member_id: str, now_ms: int) -> Effects:
        """A JoinGroup that ``check_join`` had nothing against. ``new_member_id`` is used if it needs one."""
        effects = Effects()
        refusal = refuse_join(join, self.state, self.protocol_type, self.roster, self.pending, self._limits)
        if refusal is Refusal.GROUP_MAX_SIZE_REACHED and join.member_id:
            self._remove([join.member_id], effects, now_ms)
        if refusal is not None:
            effects.joins.append((ticket, JoinGroupAnswer(refusal, join.member_id)))
        elif join.member_id in self.pending:
            del self.pending[join.member_id]
            self._add(join, join.member_id, ticket, effects, now_ms)
        elif join.member_id:
            self._rejoin(self.roster.members[join.member_id], join, ticket, effects, now_ms)
        elif self.roster.static_member(join.group_instance_id) is not None:
            self._replace_static(join, ticket, new_member_id, effects, now_ms)
        elif join.group_instance_id is None and join.member_id_required:
            self.pending[new_member_id] = now_ms + join.session_timeout_ms
            self._arm(now_ms + join.session_timeout_ms)
            effects.joins.append((ticket, JoinGroupAnswer(Refusal.MEMBER_ID_REQUIRED, new_member_id)))
        else:
            self._add(join, new_member_id, ticket, effects, now_ms)
        return effects

    def sync(self, sync: SyncGroup, ticket: int, now_ms: int) -> Effects:
        """A SyncGroup; the leader's carries the assignments and makes the generation stable."""
        effects = Effects()
        refusal = self._check_current(sync.member_id, sync.group_instance_id, sync.generation_id)
        if refusal is None and (
            sync.protocol_type not in (None, self.protocol_type) or sync.protocol_name not in (None, self.protocol_name)
        ):
            refusal = Refusal.INCONSISTENT_GROUP_PROTOCOL
        refusal = refusal or RULES[self.state].sync
        leads = sync.member_id == self.leader_id and self.state is GroupState.COMPLETING_REBALANCE
        if refusal is None and leads:
            assigned_bytes = sum(len(assignment) for _, assignment in sync.assignments)
            if self.roster.held_bytes + assigned_bytes > self._limits.bytes_max:
                refusal = Refusal.INVALID_REQUEST
        if refusal is not None:
            effects.syncs.append((ticket, SyncGroupAnswer(refusal)))
            return effects
        member = self.roster.members[sync.member_id]
        self._answer_sync(member, SyncGroupAnswer(Refusal.REBALANCE_IN_PROGRESS), effects, now_ms)
        member.sync_ticket = ticket
        member.synced = True
        if leads:
            self._stabilize(dict(sync.assignments), effects, now_ms)
        elif self.state is GroupState.STABLE:
            self._answer_sync(member, self._assigned(member), effects, now_ms)
        return effects

    def heartbeat(
        self, generation_id: int, member_id: str, group_instance_id: str | None, now_ms: int
    ) -> Refusal | None:
        """A Heartbeat; prolongs the session, also of a member that is told to rejoin."""
        refusal = self._check_current(member_id, group_instance_id, generation_id)
        if refusal is None:
            self._touch(self.roster.members[member_id], now_ms)
            refusal = RULES[self.state].heartbeat
        return refusal

    def leave(self, leaving: Sequence[LeavingMember], now_ms: int) -> tuple[list[Refusal | None], Effects]:
        """A LeaveGroup: members by id, or (an administrator's) static members by instance id alone."""
        effects = Effects()
        answers: list[Refusal | None] = []
        gone: list[str] = []
        for each in leaving:
            member_id, refusal = each.member_id, None
            if not member_id:
                static = self.roster.static_member(each.group_instance_id)
                member_id, refusal = (static.member_id, None) if static else ("", Refusal.UNKNOWN_MEMBER_ID)
            elif member_id not in self.pending:
                refusal = self.roster.check(member_id, each.group_instance_id)
            if refusal is None and member_id in gone:
                refusal = Refusal.UNKNOWN_MEMBER_ID
            if refusal is None:
                gone.append(member_id)
            answers.append(refusal)
        self._remove(gone, effects, now_ms)
        return answers, effects

    def check_commit(
        self, generation_id: int, member_id: str, group_instance_id: str | None, now_ms: int
    ) -> Refusal | None:
        """May these offsets be committed? Prolongs the session of a member that may."""
        if self.state is GroupState.EMPTY and generation_id < 0:
            return None
        if generation_id < 0 and not member_id and group_instance_id is None:
            return Refusal.UNKNOWN_MEMBER_ID
        refusal = self._check_current(member_id, group_instance_id, generation_id) or RULES[self.state].commit
        if refusal is None:
            self._touch(self.roster.members[member_id], now_ms)
        return refusal

    def kill(self) -> Refusal | None:
        """DeleteGroups: only an empty group can go."""
        if GroupState.DEAD not in RULES[self.state].next_states:
            return Refusal.NON_EMPTY_GROUP
        self._enter(GroupState.DEAD)
        self.pending.clear()
        self.wake_ms = None
        return None

    def expire(self, now_ms: int) -> Effects:
        """Time has come to ``now_ms``: end sessions and barriers that are due, and set ``wake_ms`` anew."""
        effects = Effects()
        gone = [member_id for member_id, deadline_ms in self.pending.items() if deadline_ms <= now_ms]
        for member in self.roster.members.values():
            if member.session_deadline_ms is None or member.session_deadline_ms > now_ms:
                continue
            if (member.join_ticket is None and member.sync_ticket is None) or member.is_new:
                gone.append(member.member_id)
            else:
                member.session_deadline_ms = None
        self._remove(gone, effects, now_ms)
        if self._sync_deadline_ms is not None and self._sync_deadline_ms <= now_ms:
            self._sync_deadline_ms = None
            self._remove([each.member_id for each in self.roster.members.values() if not each.synced], effects, now_ms)
        if self._join_deadline_ms is not None and self._join_deadline_ms <= now_ms:
            self._join_deadline_passed(effects, now_ms)
        self.wake_ms = min(self._deadlines(), default=None)
        return effects

    def _check_current(self, member_id: str, group_instance_id: str | None, generation_id: int) -> Refusal | None:
        refusal = self.roster.check(member_id, group_instance_id)
        if refusal is None and generation_id != self.generation_id:
            return Refusal.ILLEGAL_GENERATION
        return refusal

    # --- joining ----------------------------------------------------------------------------------------

    def _add(self, join: JoinGroup, member_id: str, ticket: int, effects: Effects, now_ms: int) -> None:
        member = Member.joining(join, member_id)
        if not self.roster.members:
            self.protocol_type = join.protocol_type
        self.roster.add(member)
        self.leader_id = self.leader_id or member_id
        if self._initial is not None:
            self._initial.joined = True
        self._park_join(member, ticket, effects)
        self._touch(member, now_ms, NEW_MEMBER_JOIN_MS)
        self._rebalance(effects, now_ms)

    def _rejoin(self, member: Member, join: JoinGroup, ticket: int, effects: Effects, now_ms: int) -> None:
        rule = RULES[self.state].rejoin
        changed = member.protocols != unique_protocols(join.protocols)
        leads = member.member_id == self.leader_id
        if rule is Rejoin.PARKS or changed or (leads and rule is Rejoin.IF_CHANGED_OR_LEADER):
            self.roster.update(member, join)
            self._park_join(member, ticket, effects)
            self._rebalance(effects, now_ms)
        else:
            self._touch(member, now_ms)
            effects.joins.append(
                (ticket, self._joined(member, self.roster.joined(self.protocol_name) if leads else ()))
            )

    def _replace_static(self, join: JoinGroup, ticket: int, new_member_id: str, effects: Effects, now_ms: int) -> None:
        """A new process of a static member takes over its place; whoever held it is fenced."""
        old = self.roster.static_member(join.group_instance_id)
        assert old is not None
        fenced = Refusal.FENCED_INSTANCE_ID
        self._answer_join(old, JoinGroupAnswer(fenced, old.member_id), effects)
        self._answer_sync(old, SyncGroupAnswer(fenced), effects)
        old_leader_id = self.leader_id
        member = Member.joining(join, new_member_id)
        member.assignment, member.is_new = old.assignment, False
        self.roster.remove(old)
        self.roster.add(member)
        if old.member_id == self.leader_id:
            self.leader_id = new_member_id
        self._touch(member, now_ms)
        if self.state is not GroupState.STABLE or self.roster.select_protocol() != self.protocol_name:
            # While completing, the leader may already assign to the old id: the new one would get nothing.
            self._park_join(member, ticket, effects)
            self._rebalance(effects, now_ms)
            return
        effects.persist = True
        leads = self.leader_id == new_member_id
        if join.skip_assignment_supported:
            answer = self._joined(
                member, self.roster.joined(self.protocol_name) if leads else (), skip_assignment=leads
            )
        else:
            # Named its old id, the leader takes itself for a follower: an assignment now would reach nobody.
            answer = self._joined(member, (), leader_id=old_leader_id)
        effects.joins.append((ticket, answer))

    def _park_join(self, member: Member, ticket: int, effects: Effects) -> None:
        self._answer_join(member, JoinGroupAnswer(Refusal.REBALANCE_IN_PROGRESS, member.member_id), effects)
        member.join_ticket = ticket
        self.roster.joins_parked += 1

    # --- the rebalance ----------------------------------------------------------------------------------

    def _rebalance(self, effects: Effects, now_ms: int) -> None:
        """The members changed: begin a rebalance, or finish the one that waits if nobody else is awaited."""
        if GroupState.PREPARING_REBALANCE in RULES[self.state].next_states:
            self._prepare(effects, now_ms)
        elif self._initial is None and self._all_joined():
            self._complete_join(effects, now_ms)

    def _prepare(self, effects: Effects, now_ms: int) -> None:
        if self.state is GroupState.COMPLETING_REBALANCE:
            for member in self.roster.members.values():
                member.assignment = b""
                self._answer_sync(member, SyncGroupAnswer(Refusal.REBALANCE_IN_PROGRESS), effects, now_ms)
        self._sync_deadline_ms = None
        timeout_ms = self.roster.rebalance_timeout_ms()
        if self.state is GroupState.EMPTY:
            # The members of a new group come one by one: wait for more, so that they share one rebalance.
            self._initial = InitialDelay(self._limits.initial_rebalance_delay_ms, timeout_ms)
            timeout_ms = self._initial.delay_ms
        self._enter(GroupState.PREPARING_REBALANCE)
        self._join_deadline_ms = self._arm(now_ms + timeout_ms)
        if self._initial is None and self._all_joined():
            self._complete_join(effects, now_ms)

    def _join_deadline_passed(self, effects: Effects, now_ms: int) -> None:
        if self._initial is not None and self._initial.extend():
            self._join_deadline_ms = self._arm(now_ms + self._initial.delay_ms)
        else:
            self._complete_join(effects, now_ms)

    def _complete_join(self, effects: Effects, now_ms: int) -> None:
        """The barrier of joins opens: count the generation, and answer those who joined."""
        members = self.roster.members
        for member in [each for each in members.values() if each.join_ticket is None]:
            if member.group_instance_id is None:
                self._drop(member, effects)
        if members and not self._elect_leader():
            # Only static members are left, and none joined: their sessions decide.
            self._join_deadline_ms = self._arm(now_ms + max(self.roster.rebalance_timeout_ms(), 1))
            return
        self._initial = None
        self._join_deadline_ms = None
        self.generation_id += 1
        if not members:
            self.protocol_name = ""
            self._enter(GroupState.EMPTY)
            effects.persist = True
            return
        self.protocol_name = self.roster.select_protocol()
        self._enter(GroupState.COMPLETING_REBALANCE)
        self._sync_deadline_ms = self._arm(now_ms + self.roster.rebalance_timeout_ms())
        for member in members.values():
            leads = member.member_id == self.leader_id
            self._answer_join(
                member, self._joined(member, self.roster.joined(self.protocol_name) if leads else ()), effects
            )
            self._touch(member, now_ms)
            member.is_new = member.synced = False

    def _stabilize(self, assignments: dict[str, bytes], effects: Effects, now_ms: int) -> None:
        """The leader's assignments are here: make them durable, then tell those who wait."""
        self._enter(GroupState.STABLE)
        effects.persist = True
        self._assigned_bytes = sum(map(len, assignments.values()))
        for member in self.roster.members.values():
            member.assignment = assignments.get(member.member_id, b"")
            self._answer_sync(member, self._assigned(member), effects, now_ms)

    def _elect_leader(self) -> bool:
        """The leader stays if it joined, else the first that joined; False when nobody did."""
        joined = [member.member_id for member in self.roster.members.values() if member.join_ticket is not None]
        if joined and self.leader_id not in joined:
            self.leader_id = joined[0]
        return bool(joined)

    def _all_joined(self) -> bool:
        return self.roster.joins_parked == len(self.roster.members) and not self.pending

    def _enter(self, state: GroupState) -> None:
        assert state in RULES[self.state].next_states, f"{self.state} -> {state}"
        self.state = state

    # --- leaving ----------------------------------------------------------------------------------------

    def _remove(self, member_ids: Iterable[str], effects: Effects, now_ms: int) -> None:
        """Forget these members and pending ids, and let the others go on without them."""
        removed = False
        for member_id in member_ids:
            removed |= self.pending.pop(member_id, None) is not None
            if (member := self.roster.members.get(member_id)) is not None:
                self._drop(member, effects)
                removed = True
        if removed and self.state is not GroupState.EMPTY:
            self._rebalance(effects, now_ms)

    def _drop(self, member: Member, effects: Effects) -> None:
        self._answer_join(member, JoinGroupAnswer(Refusal.UNKNOWN_MEMBER_ID, ""), effects)
        self._answer_sync(member, SyncGroupAnswer(Refusal.UNKNOWN_MEMBER_ID), effects)
        self.roster.remove(member)
        if member.member_id == self.leader_id:
            self.leader_id = next(iter(self.roster.members), "")

    # --- answers and deadlines --------------------------------------------------------------------------

    def _joined(
        self,
        member: Member,
        members: tuple[JoinedMember, ...],
        leader_id: str | None = None,
        skip_assignment: bool = False,
    ) -> JoinGroupAnswer:
        return JoinGroupAnswer(
            None,
            member.member_id,
            self.generation_id,
            self.protocol_type,
            self.protocol_name,
            self.leader_id if leader_id is None else leader_id,
            skip_assignment,
            members,
        )

    def _assigned(self, member: Member) -> SyncGroupAnswer:
        return SyncGroupAnswer(None, self.protocol_type, self.protocol_name, member.assignment)

    def _answer_join(self, member: Member, answer: JoinGroupAnswer, effects: Effects) -> None:
        if member.join_ticket is not None:
            effects.joins.append((member.join_ticket, answer))
            member.join_ticket = None
            self.roster.joins_parked -= 1

    def _answer_sync(
        self, member: Member, answer: SyncGroupAnswer, effects: Effects, now_ms: int | None = None
    ) -> None:
        """Answer its parked sync, if any; it has a whole session from ``now_ms`` on."""
        if member.sync_ticket is not None:
            effects.syncs.append((member.sync_ticket, answer))
            member.sync_ticket = None
            if now_ms is not None:
                self._touch(member, now_ms)

    def _touch(self, member: Member, now_ms: int, timeout_ms: int | None = None) -> None:
        """It was heard of: its session begins anew."""
        member.session_deadline_ms = self._arm(now_ms + (timeout_ms or member.session_timeout_ms))

    def _arm(self, deadline_ms: int) -> int:
        if self.wake_ms is None or deadline_ms < self.wake_ms:
            self.wake_ms = deadline_ms
        return deadline_ms

    def _deadlines(self) -> Iterator[int]:
        yield from self.pending.values()
        for member in self.roster.members.values():
            if member.session_deadline_ms is not None:
                yield member.session_deadline_ms
        for deadline_ms in (self._join_deadline_ms, self._sync_deadline_ms):
            if deadline_ms is not None:
                yield deadline_ms
