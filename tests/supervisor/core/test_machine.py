"""Whatever happens in whatever order: the ledger's rules hold, the fleet heals, a stop ends.

The ledger checks every single step. Here are the happenings, and the two promises that take
time: from any situation fair children lead to the fleet that is wanted, and a TERM leads out
within the stop time-outs even if no child helps.
"""

import json
import os
from collections.abc import Callable
from math import inf
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.supervisor.core.simulation import Behaviour, Check, Child, World

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core.policy import (
    ABORT_GRACE,
    KILL_GRACE,
    TERMINATE_GRACE,
    Policy,
)
from asgictl.core.snapshot import restore, snapshot
from asgictl.core.state import ACTIVE

durations = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 8.0, 35.0])
signals = st.sampled_from(["TERM", "ABRT"])
policies = st.builds(
    Policy,
    workers=st.integers(1, 5),
    timeout=st.sampled_from([2.0, 6.0, 30.0]),
    boot_timeout=st.sampled_from([2.0, 60.0]),
    stop_timeout=st.sampled_from([0.0, 5.0, 30.0]),
    reload_drain_timeout=st.sampled_from([0.0, 5.0, 300.0]),
    lifespan_timeout=st.sampled_from([0.0, 10.0]),
    min_ready=st.sampled_from([0.0, 1.0, 40.0]),
    give_up_after=st.sampled_from([0.0, 300.0]),
    preload=st.booleans(),
    max_workers=st.sampled_from([6, 1024]),
    surge=st.sampled_from([0, 1, 3]),
    stop_delay=st.sampled_from([0.0, 5.0]),
)
behaviours = st.builds(
    Behaviour,
    fork_error=st.sampled_from(["", "", "", "EAGAIN"]),
    fork_delay=st.sampled_from([0.0, 0.0, 0.0, 0.3, 5.0, inf]),
    boot=st.sampled_from([0.0, 0.2, 0.5, 3.0, inf]),
    boot_error=st.sampled_from(["", "", "", "no module named app"]),
    boot_exit=st.sampled_from([False, False, True]),
    beat_interval=st.sampled_from([0.4, 0.8]),
    lost_beats=st.frozensets(st.integers(1, 20), max_size=12),
    hangs_after=st.sampled_from([inf, inf, 0.1, 2.0, 15.0]),
    wakes_after=st.sampled_from([inf, 2.5, 6.0, 20.0]),
    exits_after=st.sampled_from([inf, inf, 0.3, 5.0, 15.0]),
    drain=durations,
    overruns_drain=st.booleans(),
    dies_in_drain=st.booleans(),
    ignores=st.frozensets(signals),
    dies_after_kill=st.sampled_from([0.01, 0.01, 7.0]),
    verdict=st.sampled_from(list(ev.Verdict)),
)
actions = st.sampled_from([kind for kind in get_args(act.Action) if kind is not act.Exit])
checks = st.builds(
    Check, takes=st.sampled_from([0.0, 0.2, 3.0, inf]), error=st.sampled_from(["", "", "broken"])
)

GOOD = Behaviour()
STUBBORN = Behaviour(overruns_drain=True, ignores=frozenset({"TERM", "ABRT"}))


class Supervision(RuleBasedStateMachine):
    @initialize(policy=policies, seed=st.integers(0, 2**64 - 1))
    def begin(self, policy: Policy, seed: int) -> None:
        self.scripts: list[Behaviour] = []
        self.world = World(policy, seed, behaviour=self._next_script)
        self.world.start()

    def _next_script(self, _spawn: act.Spawn) -> Behaviour:
        return self.scripts.pop() if self.scripts else GOOD

    # -- The world changes

    @rule(behaviours=st.lists(behaviours, min_size=1, max_size=5))
    def next_children_will(self, behaviours: list[Behaviour]) -> None:
        self.scripts = behaviours

    @rule(preflight=checks, template=checks, policy=st.none() | policies)
    def next_reload_will(self, preflight: Check, template: Check, policy: Policy | None) -> None:
        self.world.preflight, self.world.template = preflight, template
        self.world.next_policy = policy

    @rule(kinds=st.lists(actions, max_size=4))
    def next_actions_fail(self, kinds: list[type[act.Action]]) -> None:
        self.world.failing = kinds

    @rule(seconds=durations)
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=durations)
    def the_supervisor_is_held_up(self, seconds: float) -> None:
        self.world.freeze(seconds)

    @rule()
    def the_template_dies(self) -> None:
        for generation in sorted(self.world.ledger.templates):
            self.world.learn(ev.TemplateFailed(generation, "killed by SIGKILL"))

    def _child(self, data: st.DataObject) -> Child:
        return self.world.children[data.draw(st.sampled_from(sorted(self.world.children)))]

    @precondition(lambda self: any(child.alive for child in self.world.children.values()))
    @rule(data=st.data(), signal=st.sampled_from(["", "KILL", "SEGV"]))
    def a_child_exits(self, data: st.DataObject, signal: str) -> None:
        self._child(data).exit(code=None if signal else 0, signal=signal)

    @precondition(lambda self: self.world.children)
    @rule(data=st.data())
    def a_child_hangs_or_wakes(self, data: st.DataObject) -> None:
        child = self._child(data)
        if child.hung:
            child.wake()
        else:
            child.hung = child.ready

    @precondition(lambda self: self.world.children)
    @rule(data=st.data())
    def a_child_asks_to_be_replaced(self, data: st.DataObject) -> None:
        child = self._child(data)
        if child.ready:
            self.world.learn(ev.RecycleRequested(child.number, "served 1000 requests"))

    @precondition(lambda self: self.world.children)
    @rule(data=st.data())
    def somebody_terminates_a_child(self, data: st.DataObject) -> None:
        child = self._child(data)
        if child.ready and not child.draining and not child.hung:
            child.drain(5.0)

    # -- People ask

    @rule(name=st.sampled_from(["HUP", "HUP", "TTIN", "TTIN", "TTOU", "USR1", "USR2", "WINCH"]))
    def a_signal(self, name: str) -> None:
        self.world.signal(name)

    @rule(count=st.integers(0, 8))
    def somebody_scales(self, count: int) -> None:
        self.world.learn(ev.ScaleRequested(count))

    @rule()
    def somebody_aborts_the_reload(self) -> None:
        self.world.learn(ev.ReloadAborted())

    @precondition(lambda self: self.world.children)
    @rule(
        data=st.data(),
        request=st.sampled_from(
            [
                ev.WorkerRestartRequested,
                ev.WorkerDrainRequested,
                ev.WorkerKillRequested,
                ev.StacksRequested,
            ]
        ),
    )
    def somebody_asks_for_a_worker(
        self, data: st.DataObject, request: Callable[[int], ev.Event]
    ) -> None:
        self.world.learn(request(self._child(data).number))

    @rule(name=st.sampled_from(["TERM", "INT", "QUIT"]))
    def a_stop(self, name: str) -> None:
        self.world.signal(name)

    @rule()
    def the_program_is_upgraded(self) -> None:
        world = self.world
        written = json.dumps(snapshot(world.state, world.now), allow_nan=False)
        assert restore(json.loads(written), world.now) == world.state
        world.state = restore(json.loads(written), world.now)

    # -- What must come of it

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self._fair_children_lead_to_the_fleet_that_is_wanted()
        self._a_stop_ends_in_time()

    def _fair_children_lead_to_the_fleet_that_is_wanted(self) -> None:
        world = self.world
        self.scripts, world.failing = [], []
        world.preflight = world.template = Check()
        for child in list(world.children.values()):
            child.behaviour = GOOD
            child.wake()
        if world.stopping:
            return
        if world.state.desired == 0:
            world.learn(ev.ScaleRequested(2))
        # The longest way: a boot or a drain that hangs, then back-off, a roll, and soaking.
        patience = 600.0 + world.state.desired * (world.policy.min_ready + 80.0)
        world.run_until(lambda: world.settled or world.stopping, patience)
        # 3 is the core's own decision to give up; nobody has asked for a stop.
        assert world.settled or world.state.exit_code == 3, world.state

    def _a_stop_ends_in_time(self) -> None:
        world = self.world
        for child in world.children.values():
            child.behaviour = STUBBORN
        world.signal("TERM")
        policy = world.state.policy
        patience = (
            policy.stop_delay
            + policy.stop_timeout
            + policy.drain_overtime
            + TERMINATE_GRACE
            + ABORT_GRACE
            + KILL_GRACE
        )
        assert world.stopped(within=patience + 0.1), world.state
        assert not any(worker.state in ACTIVE for worker in world.state.workers.values())


TestSupervision = pytest.mark.timeout(36_000 if "HYPOTHESIS_PROFILE" in os.environ else 120)(
    Supervision.TestCase
)
TestSupervision.settings = settings(
    max_examples=max(200, settings().max_examples), stateful_step_count=40
)
