"""The rules of a classic group, one by one, with time in the test's hands."""

from collections.abc import Sequence

import pytest

from metadata.group_admission import check_join
from metadata.group_model import JoinGroup, JoinGroupAnswer, LeavingMember, SyncGroup, SyncGroupAnswer
from metadata.group_states import RULES, Effects, GroupLimits, GroupState
from metadata.groups import NEW_MEMBER_JOIN_MS, Group
from metadata.model import Refusal

LIMITS = GroupLimits(
    initial_rebalance_delay_ms=3_000, session_timeout_ms_min=6_000, session_timeout_ms_max=1_800_000, members_max=5
)
SESSION_MS = 10_000
REBALANCE_MS = 60_000
RANGE = (("range", b"r"),)
BOTH = (("range", b"r"), ("sticky", b"s"))
STICKY_FIRST = (("sticky", b"s"), ("range", b"r"))


def a_join(
    member_id: str = "",
    instance: str | None = None,
    protocols: tuple[tuple[str, bytes], ...] = RANGE,
    *,
    required: bool = False,
    session_ms: int = SESSION_MS,
    rebalance_ms: int = REBALANCE_MS,
    kind: str = "consumer",
    skip: bool = False,
) -> JoinGroup:
    return JoinGroup(
        "g", member_id, instance, "client", "/host", session_ms, rebalance_ms, kind, protocols, required, skip
    )


class World:
    """A group, a clock, and what was answered to whom."""

    def __init__(self, limits: GroupLimits = LIMITS) -> None:
        self.group = Group("g", limits)
        self.now_ms = 1_000_000
        self.tickets = 0
        self.joins: dict[int, JoinGroupAnswer] = {}
        self.syncs: dict[int, SyncGroupAnswer] = {}
        self.saved = 0

    def take(self, effects: Effects) -> None:
        for ticket, join_answer in effects.joins:
            assert ticket not in self.joins
            self.joins[ticket] = join_answer
        for ticket, sync_answer in effects.syncs:
            assert ticket not in self.syncs
            self.syncs[ticket] = sync_answer
        self.saved += effects.persist

    def join(self, join: JoinGroup, name: str = "") -> int:
        self.tickets += 1
        self.take(self.group.join(join, self.tickets, name or f"new-{self.tickets}", self.now_ms))
        return self.tickets

    def sync(
        self,
        member_id: str,
        generation_id: int | None = None,
        assignments: Sequence[tuple[str, bytes]] = (),
        instance: str | None = None,
        kind: str | None = None,
        protocol: str | None = None,
    ) -> int:
        self.tickets += 1
        generation = self.group.generation_id if generation_id is None else generation_id
        sync = SyncGroup("g", generation, member_id, instance, kind, protocol, tuple(assignments))
        self.take(self.group.sync(sync, self.tickets, self.now_ms))
        return self.tickets

    def heartbeat(
        self, member_id: str, generation_id: int | None = None, instance: str | None = None
    ) -> Refusal | None:
        generation = self.group.generation_id if generation_id is None else generation_id
        return self.group.heartbeat(generation, member_id, instance, self.now_ms)

    def leave(self, *members: tuple[str, str | None]) -> list[Refusal | None]:
        refusals, effects = self.group.leave([LeavingMember(*member) for member in members], self.now_ms)
        self.take(effects)
        return refusals

    def commit(
        self, member_id: str = "", generation_id: int | None = None, instance: str | None = None
    ) -> Refusal | None:
        generation = self.group.generation_id if generation_id is None else generation_id
        return self.group.check_commit(generation, member_id, instance, self.now_ms)

    def pass_time(self, duration_ms: int, alive: Sequence[str] = ()) -> None:
        """Let time pass as the driver does: wake the group whenever it asked to be; ``alive`` send heartbeats."""
        end_ms = self.now_ms + duration_ms
        while self.now_ms < end_ms:
            step_ms = min(end_ms, self.now_ms + 1_000)
            if self.group.wake_ms is not None and self.group.wake_ms < step_ms:
                step_ms = max(self.group.wake_ms, self.now_ms)
            self.now_ms = step_ms
            for member_id in alive:
                self.heartbeat(member_id)
            if self.group.wake_ms is not None and self.group.wake_ms <= self.now_ms:
                self.take(self.group.expire(self.now_ms))
                assert self.group.wake_ms is None or self.group.wake_ms > self.now_ms

    def stable(
        self, *names: str, instances: Sequence[str | None] = (), protocols: tuple[tuple[str, bytes], ...] = RANGE
    ) -> None:
        """A stable group of these members; the first leads, and each is assigned its own name."""
        for index, name in enumerate(names):
            self.join(a_join(instance=instances[index] if instances else None, protocols=protocols), name)
        self.pass_time(LIMITS.initial_rebalance_delay_ms * (2 if len(names) > 1 else 1))
        assert self.state is GroupState.COMPLETING_REBALANCE
        for name in reversed(names):
            self.sync(name, assignments=[(each, each.encode()) for each in names] if name == names[0] else ())
        assert self.state is GroupState.STABLE

    @property
    def state(self) -> GroupState:
        return self.group.state

    def members(self) -> list[str]:
        return list(self.group.roster.members)


# --- what a state answers (the table) ---------------------------------------------------------------------


def in_state(state: GroupState) -> World:
    """A group with members a and b (in Empty: with none), a having been answered in generation 1."""
    world = World()
    if state is GroupState.EMPTY:
        return world
    world.stable("a", "b")
    if state is GroupState.STABLE:
        return world
    world.join(a_join("a"))
    if state is GroupState.COMPLETING_REBALANCE:
        world.join(a_join("b"))
    assert world.state is state
    return world


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (GroupState.EMPTY, Refusal.UNKNOWN_MEMBER_ID),
        (GroupState.PREPARING_REBALANCE, Refusal.REBALANCE_IN_PROGRESS),
        (GroupState.COMPLETING_REBALANCE, None),
        (GroupState.STABLE, None),
    ],
)
def test_heartbeat_by_state(state: GroupState, refusal: Refusal | None) -> None:
    assert in_state(state).heartbeat("a") is refusal


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (GroupState.EMPTY, Refusal.UNKNOWN_MEMBER_ID),
        (GroupState.PREPARING_REBALANCE, None),
        (GroupState.COMPLETING_REBALANCE, Refusal.REBALANCE_IN_PROGRESS),
        (GroupState.STABLE, None),
    ],
)
def test_commit_of_a_member_by_state(state: GroupState, refusal: Refusal | None) -> None:
    assert in_state(state).commit("a") is refusal


@pytest.mark.parametrize("state", [GroupState.PREPARING_REBALANCE, GroupState.STABLE])
def test_commit_without_generation_only_while_empty(state: GroupState) -> None:
    assert in_state(GroupState.EMPTY).commit("", -1) is None
    assert in_state(state).commit("", -1) is Refusal.UNKNOWN_MEMBER_ID
    assert in_state(state).commit("a", -1) is Refusal.ILLEGAL_GENERATION


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (GroupState.EMPTY, Refusal.UNKNOWN_MEMBER_ID),
        (GroupState.PREPARING_REBALANCE, Refusal.REBALANCE_IN_PROGRESS),
    ],
)
def test_sync_is_refused_by_state(state: GroupState, refusal: Refusal) -> None:
    world = in_state(state)
    assert world.syncs[world.sync("a")].refusal is refusal


def test_sync_while_stable_hears_the_stored_assignment() -> None:
    world = in_state(GroupState.STABLE)
    assert world.syncs[world.sync("b")] == SyncGroupAnswer(None, "consumer", "range", b"b")


@pytest.mark.parametrize("state", [GroupState.PREPARING_REBALANCE, GroupState.COMPLETING_REBALANCE, GroupState.STABLE])
def test_unknown_members_and_wrong_generations_are_told_apart(state: GroupState) -> None:
    world = in_state(state)
    for wrong in (world.group.generation_id - 1, world.group.generation_id + 1):
        assert world.heartbeat("a", wrong) is Refusal.ILLEGAL_GENERATION
        assert world.commit("a", wrong) is Refusal.ILLEGAL_GENERATION
        assert world.syncs[world.sync("a", wrong)].refusal is Refusal.ILLEGAL_GENERATION
    assert world.heartbeat("stranger") is Refusal.UNKNOWN_MEMBER_ID
    assert world.commit("stranger") is Refusal.UNKNOWN_MEMBER_ID
    assert world.syncs[world.sync("stranger")].refusal is Refusal.UNKNOWN_MEMBER_ID
    assert world.joins[world.join(a_join("stranger"))].refusal is Refusal.UNKNOWN_MEMBER_ID
    assert world.leave(("stranger", None)) == [Refusal.UNKNOWN_MEMBER_ID]


def test_only_an_empty_group_can_be_deleted_and_then_answers_nothing_else() -> None:
    assert in_state(GroupState.STABLE).group.kill() is Refusal.NON_EMPTY_GROUP
    world = in_state(GroupState.EMPTY)
    assert world.group.kill() is None
    assert world.joins[world.join(a_join())].refusal is Refusal.COORDINATOR_NOT_AVAILABLE
    assert RULES[world.state].next_states == frozenset()


@pytest.mark.parametrize(
    ("session_ms", "refusal"),
    [
        (5_999, Refusal.INVALID_SESSION_TIMEOUT),
        (6_000, None),
        (1_800_000, None),
        (1_800_001, "invalid_session_timeout"),
    ],
)
def test_session_timeouts_have_bounds(session_ms: int, refusal: Refusal | None) -> None:
    assert check_join(a_join(session_ms=session_ms), LIMITS) == refusal


# --- the first rebalance ----------------------------------------------------------------------------------


def test_the_first_member_waits_out_the_initial_delay_and_leads() -> None:
    world = World()
    ticket = world.join(a_join(), "a")
    world.pass_time(2_999)
    assert ticket not in world.joins
    world.pass_time(1)
    answer = world.joins[ticket]
    assert (answer.generation_id, answer.leader_id, answer.protocol_name) == (1, "a", "range")
    assert [member.member_id for member in answer.members] == ["a"]
    assert not world.saved, "a generation is made durable when it has assignments"


def test_each_new_member_extends_the_initial_delay_up_to_the_rebalance_timeout() -> None:
    world = World()
    world.join(a_join(rebalance_ms=8_000), "a")
    for second in range(7):
        world.pass_time(1_000)
        if second % 2:
            world.join(a_join(rebalance_ms=8_000), f"m{second}")
    world.pass_time(999)
    assert not world.joins
    world.pass_time(1)
    assert {answer.generation_id for answer in world.joins.values()} == {1}
    assert len(world.joins) == 4


def test_a_member_that_joins_late_in_the_initial_delay_extends_it_once() -> None:
    world = World()
    world.join(a_join(), "a")
    world.pass_time(2_900)
    world.join(a_join(), "b")
    world.pass_time(3_099)
    assert not world.joins
    world.pass_time(1)
    assert len(world.joins) == 2


def test_without_an_initial_delay_the_first_member_is_answered_at_once() -> None:
    world = World(GroupLimits(0, 6_000, 1_800_000, 5))
    ticket = world.join(a_join(), "a")
    assert world.group.wake_ms == world.now_ms
    world.take(world.group.expire(world.now_ms))
    assert world.joins[ticket].refusal is None


def test_only_the_leader_hears_of_the_members() -> None:
    world = World()
    leader, follower = world.join(a_join(), "a"), world.join(a_join(instance="i"), "b")
    world.pass_time(6_000)
    assert [(each.member_id, each.group_instance_id, each.metadata) for each in world.joins[leader].members] == [
        ("a", None, b"r"),
        ("b", "i", b"r"),
    ]
    assert world.joins[follower].members == ()
    assert world.joins[follower].leader_id == "a"


# --- member ids -------------------------------------------------------------------------------------------


def test_a_new_dynamic_member_must_come_back_with_its_id() -> None:
    world = World()
    first = world.join(a_join(required=True), "a")
    assert world.joins[first] == JoinGroupAnswer(Refusal.MEMBER_ID_REQUIRED, "a")
    assert world.state is GroupState.EMPTY
    second = world.join(a_join("a", required=True))
    world.pass_time(3_000)
    assert world.joins[second].member_id == "a"
    assert world.joins[second].refusal is None


def test_a_static_member_needs_no_second_round() -> None:
    world = World()
    ticket = world.join(a_join(instance="i", required=True), "a")
    world.pass_time(3_000)
    assert world.joins[ticket].refusal is None


def test_a_pending_member_holds_the_join_open_until_it_expires() -> None:
    world = World()
    world.stable("a")
    world.join(a_join(required=True, session_ms=7_000), "p")
    assert world.state is GroupState.STABLE
    ticket = world.join(a_join("a"))
    world.pass_time(6_999)
    assert ticket not in world.joins
    world.pass_time(1)
    assert world.joins[ticket].generation_id == 2
    assert world.joins[world.join(a_join("p"))].refusal is Refusal.UNKNOWN_MEMBER_ID


def test_a_pending_member_can_leave() -> None:
    world = World()
    world.stable("a")
    world.join(a_join(required=True), "p")
    ticket = world.join(a_join("a"))
    assert world.leave(("p", None)) == [None]
    assert world.joins[ticket].generation_id == 2


def test_a_pending_id_is_not_a_static_members() -> None:
    world = World()
    world.join(a_join(required=True), "p")
    assert world.joins[world.join(a_join("p", "i"))].refusal is Refusal.UNKNOWN_MEMBER_ID


# --- rebalancing ------------------------------------------------------------------------------------------


def test_a_new_member_makes_everybody_rejoin_and_the_leader_stays() -> None:
    world = World()
    world.stable("a", "b")
    newcomer = world.join(a_join(), "c")
    assert world.heartbeat("a", 1) is Refusal.REBALANCE_IN_PROGRESS
    follower, leader = world.join(a_join("b")), world.join(a_join("a"))
    assert {world.joins[ticket].generation_id for ticket in (newcomer, follower, leader)} == {2}
    assert {world.joins[ticket].leader_id for ticket in (newcomer, follower, leader)} == {"a"}
    assert len(world.joins[leader].members) == 3


def test_a_leader_that_does_not_rejoin_in_time_is_replaced_and_gone() -> None:
    world = World()
    world.stable("a", "b")
    ticket = world.join(a_join("b", protocols=(("range", b"new"),)))
    world.pass_time(REBALANCE_MS, alive=["a"])
    assert world.joins[ticket].leader_id == "b"
    assert [each.metadata for each in world.joins[ticket].members] == [b"new"]
    assert world.members() == ["b"]


def test_the_join_barrier_waits_for_the_longest_rebalance_timeout() -> None:
    world = World()
    world.join(a_join(rebalance_ms=20_000), "a")
    world.join(a_join(rebalance_ms=90_000), "b")
    world.pass_time(6_000)
    world.sync("b")
    world.sync("a")
    ticket = world.join(a_join("a", rebalance_ms=20_000))
    world.pass_time(89_999, alive=["b"])
    assert ticket not in world.joins
    world.pass_time(1, alive=["b"])
    assert ticket in world.joins


def test_a_leader_that_rejoins_always_rebalances() -> None:
    world = World()
    world.stable("a", "b")
    world.join(a_join("a"))
    assert world.state is GroupState.PREPARING_REBALANCE


def test_a_follower_that_rejoins_unchanged_hears_the_current_generation() -> None:
    world = World()
    world.stable("a", "b")
    answer = world.joins[world.join(a_join("b"))]
    assert (answer.refusal, answer.generation_id, answer.members) == (None, 1, ())
    assert world.state is GroupState.STABLE


def test_a_follower_that_changed_rebalances() -> None:
    world = World()
    world.stable("a", "b")
    world.join(a_join("b", protocols=(("range", b"other topics"),)))
    assert world.state is GroupState.PREPARING_REBALANCE


def test_while_completing_an_unchanged_member_hears_its_answer_again() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.pass_time(6_000)
    leader, follower = world.join(a_join("a")), world.join(a_join("b"))
    assert len(world.joins[leader].members) == 2
    assert world.joins[follower].members == ()
    assert world.group.generation_id == 1


def test_while_completing_a_change_sends_those_who_synced_back_to_join() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.pass_time(6_000)
    parked = world.sync("b")
    world.join(a_join("a", protocols=BOTH))
    assert world.syncs[parked].refusal is Refusal.REBALANCE_IN_PROGRESS
    assert world.state is GroupState.PREPARING_REBALANCE


def test_a_second_join_of_the_same_member_replaces_the_first() -> None:
    world = World()
    world.stable("a", "b")
    first = world.join(a_join("a"))
    second = world.join(a_join("a"))
    assert world.joins[first].refusal is Refusal.REBALANCE_IN_PROGRESS
    world.join(a_join("b"))
    assert world.joins[second].generation_id == 2


# --- protocols --------------------------------------------------------------------------------------------


def test_the_protocol_is_voted_among_those_that_all_support() -> None:
    world = World()
    tickets = [
        world.join(a_join(protocols=protocols))
        for protocols in ((("only-mine", b""), *BOTH), STICKY_FIRST, STICKY_FIRST)
    ]
    world.pass_time(6_000)
    assert {world.joins[ticket].protocol_name for ticket in tickets} == {"sticky"}
    assert {each.metadata for each in world.joins[tickets[0]].members} == {b"s"}


@pytest.mark.parametrize(
    ("kind", "protocols"),
    [("connect", RANGE), ("consumer", (("other", b""),)), ("consumer", ()), ("", RANGE)],
)
def test_a_member_that_shares_nothing_is_refused(kind: str, protocols: tuple[tuple[str, bytes], ...]) -> None:
    world = World()
    world.stable("a")
    ticket = world.join(a_join(kind=kind, protocols=protocols))
    assert world.joins[ticket].refusal is Refusal.INCONSISTENT_GROUP_PROTOCOL
    assert world.state is GroupState.STABLE


@pytest.mark.parametrize(("kind", "protocols"), [("consumer", ()), ("", RANGE)])
def test_an_empty_group_wants_a_type_and_a_protocol(kind: str, protocols: tuple[tuple[str, bytes], ...]) -> None:
    world = World()
    ticket = world.join(a_join(kind=kind, protocols=protocols))
    assert world.joins[ticket].refusal is Refusal.INCONSISTENT_GROUP_PROTOCOL


def test_an_empty_group_may_change_its_type() -> None:
    world = World()
    world.stable("a")
    world.leave(("a", None))
    ticket = world.join(a_join(kind="connect"))
    world.pass_time(3_000)
    assert world.joins[ticket].protocol_type == "connect"


@pytest.mark.parametrize(
    ("kind", "protocol", "refusal"),
    [
        ("consumer", "range", None),
        (None, None, None),
        ("connect", "range", Refusal.INCONSISTENT_GROUP_PROTOCOL),
        ("consumer", "sticky", Refusal.INCONSISTENT_GROUP_PROTOCOL),
    ],
)
def test_a_sync_names_the_protocol_it_was_told(kind: str | None, protocol: str | None, refusal: Refusal | None) -> None:
    world = World()
    world.stable("a")
    assert world.syncs[world.sync("a", kind=kind, protocol=protocol)].refusal is refusal


def test_a_repeated_protocol_counts_once() -> None:
    world = World()
    world.stable("a", protocols=(("range", b"1"), ("range", b"2")))
    assert world.group.describe().members[0].metadata == b"1"
    ticket = world.join(a_join(), "b")
    world.join(a_join("a"))
    assert world.joins[ticket].protocol_name == "range"


# --- syncing ----------------------------------------------------------------------------------------------


def test_the_leaders_sync_makes_the_generation_durable_and_answers_all() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.join(a_join(), "c")
    world.pass_time(6_000)
    parked = world.sync("b")
    assert parked not in world.syncs
    leader = world.sync("a", assignments=[("a", b"1"), ("b", b"2"), ("stranger", b"3")])
    assert world.saved == 1
    assert world.syncs[leader].assignment == b"1"
    assert world.syncs[parked].assignment == b"2"
    assert world.syncs[world.sync("c")].assignment == b"", "a member the leader forgot gets empty bytes"


def test_a_second_sync_of_the_same_member_replaces_the_first() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.pass_time(6_000)
    first = world.sync("b")
    second = world.sync("b")
    assert world.syncs[first].refusal is Refusal.REBALANCE_IN_PROGRESS
    world.sync("a", assignments=[("b", b"2")])
    assert world.syncs[second].assignment == b"2"


def test_members_that_miss_the_sync_barrier_are_evicted() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.pass_time(6_000)
    world.sync("a")
    assert world.state is GroupState.STABLE
    world.pass_time(REBALANCE_MS - 1, alive=["a", "b"])
    assert world.members() == ["a", "b"]
    world.pass_time(1, alive=["a", "b"])
    assert world.members() == ["a"]
    assert world.state is GroupState.PREPARING_REBALANCE


def test_a_leader_that_never_syncs_is_evicted_and_its_followers_are_told() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.pass_time(6_000)
    parked = world.sync("b")
    world.pass_time(REBALANCE_MS, alive=["a", "b"])
    assert world.syncs[parked].refusal is Refusal.REBALANCE_IN_PROGRESS
    assert world.members() == ["b"]
    assert world.group.leader_id == "b"


def test_a_parked_sync_outlives_its_session() -> None:
    world = World()
    world.join(a_join(), "a")
    world.join(a_join(), "b")
    world.pass_time(6_000)
    parked = world.sync("b")
    world.pass_time(2 * SESSION_MS, alive=["a"])
    world.sync("a", assignments=[("b", b"2")])
    assert world.syncs[parked].assignment == b"2"
    world.pass_time(SESSION_MS - 1, alive=["a"])
    assert "b" in world.members()
    world.pass_time(1, alive=["a"])
    assert "b" not in world.members()


def test_assignments_that_are_too_large_are_refused() -> None:
    world = World(GroupLimits(3_000, 6_000, 1_800_000, 5, bytes_max=1_000))
    world.join(a_join(), "a")
    world.pass_time(3_000)
    assert world.syncs[world.sync("a", assignments=[("a", bytes(1_000))])].refusal is Refusal.INVALID_REQUEST
    assert world.syncs[world.sync("a", assignments=[("a", bytes(900))])].refusal is None


# --- sessions ---------------------------------------------------------------------------------------------


def test_a_silent_member_is_removed_after_its_session() -> None:
    world = World()
    world.stable("a", "b")
    world.pass_time(SESSION_MS - 1, alive=["a"])
    assert world.members() == ["a", "b"]
    world.pass_time(1, alive=["a"])
    assert world.members() == ["a"]
    assert world.heartbeat("a") is Refusal.REBALANCE_IN_PROGRESS


def test_a_commit_prolongs_the_session() -> None:
    world = World()
    world.stable("a")
    for _ in range(4):
        world.pass_time(SESSION_MS - 1)
        assert world.commit("a") is None
    assert world.members() == ["a"]


def test_a_parked_join_outlives_its_session() -> None:
    world = World()
    world.stable("a", "b")
    ticket = world.join(a_join("a"))
    world.pass_time(5 * SESSION_MS, alive=["b"])
    assert ticket not in world.joins
    world.join(a_join("b"))
    assert world.joins[ticket].refusal is None


def test_a_new_member_that_waits_too_long_is_told_to_start_again() -> None:
    world = World()
    world.stable("a", protocols=RANGE)
    world.group.roster.members["a"].rebalance_timeout_ms = 10 * NEW_MEMBER_JOIN_MS
    ticket = world.join(a_join(), "n")
    world.pass_time(NEW_MEMBER_JOIN_MS - 1, alive=["a"])
    assert ticket not in world.joins
    world.pass_time(1, alive=["a"])
    assert world.joins[ticket] == JoinGroupAnswer(Refusal.UNKNOWN_MEMBER_ID, "")
    assert world.members() == ["a"]


def test_the_last_members_end_leaves_an_empty_durable_generation() -> None:
    world = World()
    world.stable("a")
    saved = world.saved
    world.pass_time(SESSION_MS)
    assert (world.state, world.group.generation_id, world.saved) == (GroupState.EMPTY, 2, saved + 1)
    assert world.group.record(0).members == ()
    assert world.group.wake_ms is None, "an empty group has nothing to wake up for"


def test_a_heartbeat_leaves_the_next_deadline_alone() -> None:
    world = World()
    world.stable("a", "b")
    wake_ms = world.group.wake_ms
    world.now_ms += 100
    world.heartbeat("a")
    assert world.group.wake_ms == wake_ms


# --- leaving ----------------------------------------------------------------------------------------------


def test_leaving_makes_the_others_rejoin() -> None:
    world = World()
    world.stable("a", "b")
    assert world.leave(("a", None)) == [None]
    assert world.group.leader_id == "b"
    assert world.heartbeat("b", 1) is Refusal.REBALANCE_IN_PROGRESS


def test_a_batch_of_members_leaves_in_one_rebalance() -> None:
    world = World()
    world.stable("a", "b", "c", instances=[None, "i", "j"])
    refusals = world.leave(("a", None), ("", "i"), ("a", None), ("wrong", "j"), ("", "nobody"), ("", None))
    assert refusals == [
        None,
        None,
        Refusal.UNKNOWN_MEMBER_ID,
        Refusal.FENCED_INSTANCE_ID,
        Refusal.UNKNOWN_MEMBER_ID,
        Refusal.UNKNOWN_MEMBER_ID,
    ]
    assert world.members() == ["c"]


def test_whoever_leaves_while_parked_is_answered() -> None:
    world = World()
    world.stable("a", "b")
    join = world.join(a_join("a"))
    world.leave(("a", None))
    assert world.joins[join].refusal is Refusal.UNKNOWN_MEMBER_ID
    world.join(a_join("b"))
    world.join(a_join(), "c")
    world.join(a_join("b"))
    sync = world.sync("c")
    world.leave(("c", None))
    assert world.syncs[sync].refusal is Refusal.UNKNOWN_MEMBER_ID


def test_leaving_lets_the_waiting_join_complete() -> None:
    world = World()
    world.stable("a", "b")
    ticket = world.join(a_join("a"))
    world.leave(("b", None))
    assert world.joins[ticket].generation_id == 2


def test_everybody_leaving_during_the_initial_delay_leaves_an_empty_group() -> None:
    world = World()
    ticket = world.join(a_join(), "a")
    world.leave(("a", None))
    assert world.joins[ticket].refusal is Refusal.UNKNOWN_MEMBER_ID
    world.pass_time(3_000)
    assert world.state is GroupState.EMPTY


# --- static members ---------------------------------------------------------------------------------------


def test_a_static_members_successor_takes_over_without_a_rebalance() -> None:
    world = World()
    world.stable("a", "b", instances=["i", "j"])
    saved = world.saved
    answer = world.joins[world.join(a_join(instance="j"), "b2")]
    assert (answer.refusal, answer.member_id, answer.generation_id, answer.leader_id) == (None, "b2", 1, "a")
    assert (world.state, world.saved) == (GroupState.STABLE, saved + 1)
    assert world.syncs[world.sync("b2", instance="j")].assignment == b"b"
    assert world.heartbeat("b2", instance="j") is None


def test_the_old_id_of_a_static_member_is_fenced_everywhere() -> None:
    world = World()
    world.stable("a", "b", instances=["i", "j"])
    world.join(a_join(instance="j"), "b2")
    assert world.heartbeat("b", instance="j") is Refusal.FENCED_INSTANCE_ID
    assert world.commit("b", instance="j") is Refusal.FENCED_INSTANCE_ID
    assert world.syncs[world.sync("b", instance="j")].refusal is Refusal.FENCED_INSTANCE_ID
    assert world.joins[world.join(a_join("b", "j"))].refusal is Refusal.FENCED_INSTANCE_ID
    assert world.leave(("b", "j")) == [Refusal.FENCED_INSTANCE_ID]
    assert world.heartbeat("b2", instance="nobody") is Refusal.UNKNOWN_MEMBER_ID


def test_a_static_leaders_successor_is_told_its_old_id_so_that_it_does_not_assign() -> None:
    world = World()
    world.stable("a", "b", instances=["i", "j"])
    answer = world.joins[world.join(a_join(instance="i"), "a2")]
    assert (answer.leader_id, answer.members, answer.skip_assignment) == ("a", (), False)
    assert world.group.leader_id == "a2"


def test_a_static_leaders_successor_may_be_told_to_skip_the_assignment() -> None:
    world = World()
    world.stable("a", "b", instances=["i", "j"])
    leader = world.joins[world.join(a_join(instance="i", skip=True), "a2")]
    assert (leader.leader_id, len(leader.members), leader.skip_assignment) == ("a2", 2, True)
    follower = world.joins[world.join(a_join(instance="j", skip=True), "b2")]
    assert (follower.leader_id, follower.members, follower.skip_assignment) == ("a2", (), False)


def test_a_successor_that_changes_the_groups_protocol_rebalances() -> None:
    world = World()
    world.stable("a", instances=["i"], protocols=BOTH)
    ticket = world.join(a_join(instance="i", protocols=(("sticky", b"s"),)), "a2")
    assert world.joins[ticket].generation_id == 2
    assert world.joins[ticket].protocol_name == "sticky"


def test_a_successor_while_completing_rebalances_and_fences_who_waits() -> None:
    world = World()
    world.join(a_join(instance="i"), "a")
    world.join(a_join(instance="j"), "b")
    world.pass_time(6_000)
    parked = world.sync("b", instance="j")
    world.join(a_join(instance="j"), "b2")
    assert world.syncs[parked].refusal is Refusal.FENCED_INSTANCE_ID
    assert world.state is GroupState.PREPARING_REBALANCE


def test_a_successor_while_preparing_counts_as_its_predecessors_rejoin() -> None:
    world = World()
    world.stable("a", "b", instances=["i", "j"])
    leader = world.join(a_join("a", "i"))
    successor = world.join(a_join(instance="j"), "b2")
    assert {world.joins[leader].generation_id, world.joins[successor].generation_id} == {2}
    assert [each.member_id for each in world.joins[leader].members] == ["a", "b2"]


def test_a_parked_static_join_is_fenced_by_its_successor() -> None:
    world = World()
    world.stable("a", "b", "c", instances=["i", "j", None])
    parked = world.join(a_join("a", "i"))
    successor = world.join(a_join(instance="i"), "a2")
    assert world.joins[parked] == JoinGroupAnswer(Refusal.FENCED_INSTANCE_ID, "a")
    assert successor not in world.joins
    world.join(a_join("b", "j"))
    world.join(a_join("c"))
    assert world.joins[successor].leader_id == "a2"


def test_a_static_member_outlives_a_rebalance_it_missed() -> None:
    world = World()
    world.join(a_join(instance="i", session_ms=200_000), "a")
    world.join(a_join(instance="j", session_ms=200_000), "b")
    world.pass_time(6_000)
    world.sync("b", instance="j")
    world.sync("a", assignments=[("a", b"a"), ("b", b"b")], instance="i")
    ticket = world.join(a_join("a", "i", session_ms=200_000))
    world.pass_time(REBALANCE_MS)
    assert len(world.joins[ticket].members) == 2, "dynamic members would be gone"


def test_a_barrier_nobody_came_to_waits_for_sessions() -> None:
    world = World()
    world.stable("a", "b", instances=["i", "j"])
    world.join(a_join(), "d")
    world.leave(("d", None))
    assert world.state is GroupState.PREPARING_REBALANCE
    for member in world.group.roster.members.values():
        member.session_deadline_ms = world.now_ms + 3 * REBALANCE_MS
    world.pass_time(REBALANCE_MS + 1)
    assert (world.state, world.group.generation_id) == (GroupState.PREPARING_REBALANCE, 1)
    world.pass_time(2 * REBALANCE_MS)
    assert world.state is GroupState.EMPTY


# --- limits and restarts ----------------------------------------------------------------------------------


def test_a_full_group_refuses_one_more_but_not_a_successor_or_a_member() -> None:
    world = World()
    world.stable("a", "b", "c", "d", "e", instances=[None, None, None, None, "i"])
    for join in (a_join(), a_join(required=True), a_join(instance="new")):
        assert world.joins[world.join(join)].refusal is Refusal.GROUP_MAX_SIZE_REACHED
    assert world.joins[world.join(a_join("b"))].refusal is None
    assert world.joins[world.join(a_join(instance="i"), "e2")].refusal is None
    assert len(world.members()) == 5


def test_a_group_over_its_maximum_shrinks_to_those_who_rejoin_first() -> None:
    full = World()
    full.stable("a", "b", "c")
    group = Group.restore(full.group.record(0), GroupLimits(3_000, 6_000, 1_800_000, members_max=2), 0)
    assert group.state is GroupState.PREPARING_REBALANCE
    world = World()
    world.group, world.now_ms = group, 0
    first, second = world.join(a_join("a")), world.join(a_join("b"))
    third = world.join(a_join("c"))
    assert world.joins[third].refusal is Refusal.GROUP_MAX_SIZE_REACHED
    assert {world.joins[first].generation_id, world.joins[second].generation_id} == {2}


def test_pending_members_are_bounded() -> None:
    world = World()
    for _ in range(LIMITS.members_max):
        assert world.joins[world.join(a_join(required=True))].refusal is Refusal.MEMBER_ID_REQUIRED
    assert world.joins[world.join(a_join(required=True))].refusal is Refusal.GROUP_MAX_SIZE_REACHED


def test_protocol_metadata_is_bounded() -> None:
    world = World(GroupLimits(3_000, 6_000, 1_800_000, 5, bytes_max=1_000))
    world.join(a_join(protocols=(("range", bytes(900)),)))
    assert world.joins[world.join(a_join(protocols=(("range", bytes(100)),)))].refusal is Refusal.GROUP_MAX_SIZE_REACHED


def test_a_member_of_a_full_group_may_say_the_same_again() -> None:
    world = World(GroupLimits(3_000, 6_000, 1_800_000, 5, bytes_max=1_000))
    world.stable("a", "b", instances=["i", None], protocols=(("range", bytes(450)),))
    assert world.joins[world.join(a_join("b", protocols=(("range", bytes(450)),)))].refusal is None
    assert world.joins[world.join(a_join(instance="i", protocols=(("range", bytes(450)),)), "a2")].refusal is None


def test_a_restored_group_goes_on_without_a_rebalance() -> None:
    world = World()
    world.stable("a", "b", instances=["i", None], protocols=BOTH)
    restored = World()
    restored.group = Group.restore(world.group.record(7), LIMITS, restored.now_ms)
    assert restored.group.describe() == world.group.describe()
    assert restored.heartbeat("a", 1, "i") is None
    assert restored.heartbeat("b", 1) is None
    assert restored.syncs[restored.sync("b", 1)].assignment == b"b"
    assert restored.group.record(7) == world.group.record(7)
    restored.pass_time(SESSION_MS - 1)
    assert restored.members() == ["a", "b"]
    restored.pass_time(1)
    assert restored.members() == []


def test_a_restored_empty_group_keeps_counting() -> None:
    world = World()
    world.stable("a")
    world.leave(("a", None))
    restored = World()
    restored.group = Group.restore(world.group.record(0), LIMITS, restored.now_ms)
    ticket = restored.join(a_join(), "b")
    restored.pass_time(3_000)
    assert restored.joins[ticket].generation_id == 3


# --- describing -------------------------------------------------------------------------------------------


def test_a_description_shows_protocol_and_assignments_only_while_stable() -> None:
    world = World()
    world.stable("a", "b")
    stable = world.group.describe()
    assert (stable.state, stable.protocol_type, stable.protocol_name) == ("Stable", "consumer", "range")
    assert [(each.member_id, each.metadata, each.assignment) for each in stable.members] == [
        ("a", b"r", b"a"),
        ("b", b"r", b"b"),
    ]
    world.join(a_join("a"))
    preparing = world.group.describe()
    assert (preparing.state, preparing.protocol_name) == ("PreparingRebalance", "")
    assert {(each.metadata, each.assignment) for each in preparing.members} == {(b"", b"")}
    assert world.group.describe(with_members=False).members == ()
