"""A group under random clients: whatever they do and however time passes, nobody is forgotten and nothing goes back."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from metadata.group_model import GroupRecord, JoinGroup, JoinGroupAnswer, LeavingMember, SyncGroup, SyncGroupAnswer
from metadata.group_states import Effects, GroupLimits, GroupState
from metadata.groups import NEW_MEMBER_JOIN_MS, Group
from metadata.model import Refusal

LIMITS = GroupLimits(
    initial_rebalance_delay_ms=3_000, session_timeout_ms_min=1, session_timeout_ms_max=1_800_000, members_max=4
)
PROTOCOLS = [
    (("range", b"r"),),
    (("range", b"r"), ("sticky", b"s")),
    (("sticky", b"s"), ("range", b"r")),
    (("range", b"other"), ("sticky", b"s")),
    (("roundrobin", b"x"),),
]
SESSIONS_MS = [6_000, 10_000, 45_000]
REBALANCES_MS = [5_000, 30_000]
INSTANCES = [None, None, "i", "j"]
FOREVER_MS = 10 * NEW_MEMBER_JOIN_MS


class GroupMachine(RuleBasedStateMachine):
    """Member ids flow from answers back into requests, as clients do; some requests are stale or made up."""

    members = Bundle("members")

    @initialize()
    def begin(self) -> None:
        self.group = Group("g", LIMITS)
        self.now_ms = 0
        self.tickets = 0
        self.parked_joins: set[int] = set()
        self.parked_syncs: dict[int, tuple[str, int]] = {}
        self.identities: dict[str, str] = {}
        self.leaders: dict[int, str] = {}
        self.stable_generation = 0
        self.saved: GroupRecord | None = None
        self.answers: list[str] = []

    def ticket(self) -> int:
        self.tickets += 1
        return self.tickets

    def take(self, effects: Effects) -> None:
        if effects.persist:
            self.saved = self.group.record(self.now_ms)
            assert self.group.state in (GroupState.STABLE, GroupState.EMPTY)
        for join_ticket, joined in effects.joins:
            self.parked_joins.remove(join_ticket)
            self.check_joined(joined)
        for sync_ticket, synced in effects.syncs:
            member_id, generation_id = self.parked_syncs.pop(sync_ticket)
            self.check_synced(synced, member_id, generation_id)

    def check_joined(self, joined: JoinGroupAnswer) -> None:
        if joined.refusal is not None:
            if joined.refusal is Refusal.MEMBER_ID_REQUIRED:
                self.answers.append(joined.member_id)
            assert joined.members == ()
            assert joined.generation_id == -1
            return
        self.answers.append(joined.member_id)
        assert joined.generation_id == self.group.generation_id
        assert joined.protocol_name == self.group.protocol_name
        if joined.members and not joined.skip_assignment:
            identity = self.identities[joined.member_id]
            assert self.leaders.setdefault(joined.generation_id, identity) == identity, "two leaders in a generation"
            assert joined.leader_id == joined.member_id
            assert joined.member_id in {each.member_id for each in joined.members}

    def check_synced(self, synced: SyncGroupAnswer, member_id: str, generation_id: int) -> None:
        if synced.refusal is not None:
            assert synced.assignment == b""
            return
        assert self.group.state is GroupState.STABLE
        assert generation_id == self.group.generation_id
        if synced.assignment:
            generation, identity = synced.assignment.decode().split(":")
            assert int(generation) == generation_id, "an assignment of another generation"
            assert identity == self.identities[member_id], "somebody else's assignment"

    # --- what clients do --------------------------------------------------------------------------------

    def join(
        self, member_id: str, instance: str | None, protocols: int, session_ms: int, rebalance_ms: int, required: bool
    ) -> None:
        join = JoinGroup(
            "g", member_id, instance, "c", "/h", session_ms, rebalance_ms, "consumer", PROTOCOLS[protocols], required
        )
        ticket = self.ticket()
        new_member_id = f"m{ticket}"
        self.identities.setdefault(member_id or new_member_id, instance or member_id or new_member_id)
        self.parked_joins.add(ticket)
        self.take(self.group.join(join, ticket, new_member_id, self.now_ms))

    @rule(
        target=members,
        instance=st.sampled_from(INSTANCES),
        protocols=st.sampled_from([0, 1, 1, 2, 2, 3, 4]),
        session_ms=st.sampled_from(SESSIONS_MS),
        rebalance_ms=st.sampled_from(REBALANCES_MS),
        required=st.booleans(),
    )
    def a_new_client_joins(
        self, instance: str | None, protocols: int, session_ms: int, rebalance_ms: int, required: bool
    ) -> str:
        self.join("", instance, protocols, session_ms, rebalance_ms, required)
        return f"m{self.tickets}"

    @rule(
        member_id=members,
        protocols=st.sampled_from([1, 1, 1, 2, 0, 4]),
        session_ms=st.sampled_from(SESSIONS_MS),
        lies=st.sampled_from([False] * 9 + [True]),
    )
    def a_member_rejoins(self, member_id: str, protocols: int, session_ms: int, lies: bool) -> None:
        identity = self.identities[member_id]
        instance = identity if identity in INSTANCES else None
        self.join(member_id, "stranger" if lies else instance, protocols, session_ms, REBALANCES_MS[0], True)

    @rule()
    def everybody_rejoins(self) -> None:
        for member in list(self.group.roster.members.values()):
            current = self.group.roster.members.get(member.member_id)
            if current is not None and current.join_ticket is None:
                self.join(member.member_id, member.group_instance_id, 1, member.session_timeout_ms, 30_000, True)

    def sync(self, member_id: str, generation_id: int, instance: str | None) -> None:
        assignments = tuple(
            (each, f"{generation_id}:{self.identities[each]}".encode()) for each in self.group.roster.members
        )
        ticket = self.ticket()
        self.parked_syncs[ticket] = (member_id, generation_id)
        sync = SyncGroup("g", generation_id, member_id, instance, None, None, assignments)
        self.take(self.group.sync(sync, ticket, self.now_ms))

    @rule(member_id=members, age=st.sampled_from([0, 0, 0, 0, 1, -1]))
    def a_member_syncs(self, member_id: str, age: int) -> None:
        identity = self.identities[member_id]
        self.sync(member_id, self.group.generation_id - age, identity if identity in INSTANCES else None)

    @rule()
    def everybody_syncs(self) -> None:
        generation_id = self.group.generation_id
        for member_id, member in list(self.group.roster.members.items()):
            self.sync(member_id, generation_id, member.group_instance_id)

    @rule(index=st.integers(0, 3))
    def one_of_the_group_syncs(self, index: int) -> None:
        present = list(self.group.roster.members.values())
        if present:
            member = present[index % len(present)]
            self.sync(member.member_id, self.group.generation_id, member.group_instance_id)

    @rule(index=st.integers(0, 3))
    def one_of_the_group_leaves(self, index: int) -> None:
        present = list(self.group.roster.members)
        if present:
            self.leave([LeavingMember(present[index % len(present)], None)])

    @rule(instance=st.sampled_from(["i", "j"]), protocols=st.sampled_from([1, 1, 3]))
    def a_static_member_restarts(self, instance: str, protocols: int) -> None:
        self.join("", instance, protocols, 45_000, 30_000, True)

    @rule(count=st.integers(2, 4))
    def a_group_forms(self, count: int) -> None:
        """Straight to the sync barrier, which random steps rarely reach with several members."""
        for index in range(count):
            self.join("", [None, "i", None, "j"][index], 1, 45_000, 30_000, False)
        self.everybody_rejoins()
        self.time_passes(12_000, alive=True)

    @rule(member_id=members, age=st.sampled_from([0, 0, 1]))
    def a_heartbeat(self, member_id: str, age: int) -> None:
        refusal = self.group.heartbeat(self.group.generation_id - age, member_id, None, self.now_ms)
        if refusal is None:
            assert member_id in self.group.roster.members
            assert age == 0

    @rule(member_id=members, generation=st.sampled_from(["none", "current", "old"]))
    def a_commit(self, member_id: str, generation: str) -> None:
        generation_id = {"none": -1, "current": self.group.generation_id, "old": self.group.generation_id - 1}
        refusal = self.group.check_commit(
            generation_id[generation], "" if generation == "none" else member_id, None, self.now_ms
        )
        if refusal is None and generation != "none":
            assert generation == "current" or self.group.state is GroupState.EMPTY
            assert self.group.state is not GroupState.COMPLETING_REBALANCE

    @rule(member_id=consumes(members))
    def a_member_leaves(self, member_id: str) -> None:
        self.leave([LeavingMember(member_id, None)])

    @rule()
    def administrators_remove_static_members(self) -> None:
        self.leave([LeavingMember("", "i"), LeavingMember("", "j"), LeavingMember("", None)])

    def leave(self, leaving: list[LeavingMember]) -> None:
        refusals, effects = self.group.leave(leaving, self.now_ms)
        assert len(refusals) == len(leaving)
        self.take(effects)

    # --- what the world does ----------------------------------------------------------------------------

    @rule(duration_ms=st.sampled_from([1, 100, 1_000, 3_000, 6_000, 30_000, 100_000]), alive=st.booleans())
    def time_passes(self, duration_ms: int, alive: bool) -> None:
        end_ms = self.now_ms + duration_ms
        while (wake_ms := self.group.wake_ms) is not None and wake_ms <= end_ms:
            self.now_ms = max(wake_ms, self.now_ms)
            if alive:
                for member_id in self.group.roster.members:
                    self.group.heartbeat(self.group.generation_id, member_id, None, self.now_ms)
            self.take(self.group.expire(self.now_ms))
            assert self.group.wake_ms is None or self.group.wake_ms > self.now_ms, "it would wake for ever"
        self.now_ms = end_ms
        if duration_ms > max(REBALANCES_MS):
            assert self.group.state is not GroupState.COMPLETING_REBALANCE, "the sync barrier has no end"

    @rule(target=members)
    def the_coordinator_restarts(self) -> object:
        """Only what was durable is left; who waited is sent away by the driver."""
        self.parked_joins.clear()
        self.parked_syncs.clear()
        self.leaders = {generation: who for generation, who in self.leaders.items() if generation <= self.durable()}
        if self.saved is None:
            self.group = Group("g", LIMITS)
            return multiple()
        self.group = Group.restore(self.saved, LIMITS, self.now_ms)
        assert self.group.record(self.saved.state_changed_ms) == self.saved
        return multiple(*self.group.roster.members)

    def durable(self) -> int:
        return 0 if self.saved is None else self.saved.generation_id

    # --- what always holds ------------------------------------------------------------------------------

    @invariant()
    def every_unanswered_ticket_is_parked(self) -> None:
        members = self.group.roster.members.values()
        assert {each.join_ticket for each in members} - {None} == self.parked_joins
        assert {each.sync_ticket for each in members} - {None} == set(self.parked_syncs)

    @invariant()
    def every_ticket_and_member_has_a_deadline_to_wake_for(self) -> None:
        if self.group.roster.members or self.group.pending:
            assert self.group.wake_ms is not None

    @invariant()
    def parked_requests_belong_to_their_state(self) -> None:
        if self.parked_joins:
            assert self.group.state is GroupState.PREPARING_REBALANCE
        if self.parked_syncs:
            assert self.group.state is GroupState.COMPLETING_REBALANCE

    @invariant()
    def generations_only_grow(self) -> None:
        if self.group.state is GroupState.STABLE:
            assert self.group.generation_id >= self.stable_generation
            self.stable_generation = self.group.generation_id
            assert self.saved is not None
            assert self.saved.generation_id == self.group.generation_id, "stable before it was made durable"
        assert self.group.generation_id >= self.durable()

    @invariant()
    def members_and_leader_agree(self) -> None:
        members = self.group.roster.members
        assert len(members) <= LIMITS.members_max + 1 or self.group.state is GroupState.PREPARING_REBALANCE
        assert self.group.leader_id in members if members else self.group.leader_id == ""
        assert (self.group.state is GroupState.EMPTY) <= (not members)
        if self.group.state is GroupState.COMPLETING_REBALANCE:
            assert self.group.generation_id in self.leaders, "nobody was told to assign"
        instances = [each.group_instance_id for each in members.values() if each.group_instance_id is not None]
        assert len(instances) == len(set(instances))

    def teardown(self) -> None:
        """Nobody comes back: everyone who waits is answered, and the group ends up empty and idle."""
        if not hasattr(self, "group"):
            return
        self.time_passes(FOREVER_MS, alive=False)
        assert not self.parked_joins
        assert not self.parked_syncs
        assert self.group.state is GroupState.EMPTY
        assert not self.group.pending
        assert self.group.wake_ms is None
        assert self.group.held_bytes >= 0


GroupMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestGroupMachine = GroupMachine.TestCase
