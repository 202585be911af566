"""New generations: from a request to the commit, or back.

A reload goes through PREFLIGHT (settings and application are checked in a child), TEMPLATE
(only with preload), CANARY (one worker) and ROLLING (all others) to its commit, and from
each of these it can be aborted or superseded by a newer one. Its workers are started by
``reconcile.py``, which makes them replace the old ones while the reload says so. Going back
needs no rules of its own: workers of a generation that is no longer wanted are replaced.
"""

from math import inf

from asgictl.core import actions as act
from asgictl.core import events as ev
from asgictl.core import stop
from asgictl.core.backoff import delay, next_seed
from asgictl.core.policy import RELOAD_SPACING
from asgictl.core.state import (
    Happening,
    Phase,
    Reload,
    ReloadPhase,
    ReloadResult,
    Template,
    TemplatePhase,
    WorkerHandle,
    WorkerState,
    changed,
    deadline_after_beat,
)
from asgictl.core.turn import Turn


def start_requested(turn: Turn) -> None:
    """Start a reload if somebody has asked for one, but not too soon after another."""
    state = turn.state
    if not state.reload_requested or state.phase is not Phase.RUNNING:
        return
    if turn.now < state.last_reload_start + RELOAD_SPACING:
        return
    if state.reload:
        turn.info(f"reload to generation {state.reload.generation} superseded by a newer one")
        _end(turn, state.reload, "superseded by a newer reload")
    epoch, generation = state.epoch + 1, state.next_generation
    turn.set(
        epoch=epoch,
        next_generation=generation + 1,
        reload_requested=False,
        last_reload_start=turn.now,
        reload=Reload(
            epoch=epoch,
            generation=generation,
            phase=ReloadPhase.PREFLIGHT,
            started=turn.now,
            deadline=turn.now + state.policy.boot_timeout,
        ),
    )
    turn.info(f"reloading: generation {generation} is being checked")
    turn.announce("reloading", f"reloading: checking generation {generation}")
    turn.do(act.StartPreflight(epoch, generation))


def abort(turn: Turn, reason: str, detail: str = "") -> None:
    """Return to the committed generation: the new one does not work, or nobody wants it."""
    state = turn.state
    assert state.reload is not None, "there is no reload to abort"
    turn.error(f"reload refused, generation {state.committed} serves on: {reason}", detail)
    _end(turn, state.reload, reason, detail)
    turn.announce("ready", f"reload refused: {reason}")


def blame(turn: Turn, worker: WorkerHandle, reason: str) -> None:
    """Abort the reload if a worker that went wrong is one of its own."""
    reload = turn.state.reload
    if reload and worker.generation == reload.generation:
        abort(turn, reason)


def _end(turn: Turn, reload: Reload, reason: str, detail: str = "") -> None:
    """Forget an uncommitted generation; those of its workers that serve do so until replaced."""
    state, generation = turn.state, reload.generation
    if reload.phase is ReloadPhase.PREFLIGHT:
        turn.do(act.CancelPreflight(reload.epoch))
    turn.set(
        reload=None,
        last_reload=ReloadResult(
            epoch=reload.epoch,
            committed=False,
            reason=reason,
            finished=turn.now,
            generation=generation,
            detail=detail,
        ),
        templates={key: item for key, item in state.templates.items() if key != generation},
        failures={key: count for key, count in state.failures.items() if key != generation},
    )
    for worker in list(turn.workers.values()):
        if worker.generation == generation and worker.state is WorkerState.STARTING:
            turn.retire(worker, reason, 0.0)
        elif worker.generation == generation and worker.state is WorkerState.SOAKING:
            # Its trial is over, whatever it would have proved. It serves, if nobody else does.
            worker = turn.move(worker, Happening.SOAKED)
            turn.put(worker, deadline=deadline_after_beat(state, worker, worker.last_beat))
    turn.do(act.Abandon(generation))


def progress(turn: Turn) -> bool:
    """Take a reload from its canary to the roll, or to its commit.

    Returns:
        Whether it got further, so that the fleet has to be looked at again.
    """
    state, reload = turn.state, turn.state.reload
    if reload is None or reload.phase not in (ReloadPhase.CANARY, ReloadPhase.ROLLING):
        return False
    renewed = sum(
        all(worker.generation == reload.generation for worker in occupants)
        and any(worker.state is WorkerState.READY for worker in occupants)
        for occupants in state.slots()
    )
    if renewed == state.desired:
        _commit(turn, reload)
    elif renewed and reload.phase is ReloadPhase.CANARY:
        turn.info(f"generation {reload.generation} works in one worker, replacing the others")
        turn.do(act.Notify("status", f"reloading: generation {reload.generation} is rolling out"))
        turn.set(reload=changed(reload, phase=ReloadPhase.ROLLING))
    else:
        return False
    return True


def _commit(turn: Turn, reload: Reload) -> None:
    state, policy, generation = turn.state, reload.policy, reload.generation
    assert policy is not None, "a reload rolls with the policy that its preflight read"
    # A fleet scaled by hand keeps its size, unless the settings themselves were changed.
    desired = state.desired if policy.workers == state.policy.workers else policy.workers
    turn.set(
        committed=generation,
        policy=policy,
        desired=min(desired, policy.max_workers),
        reload=None,
        last_reload=ReloadResult(
            epoch=reload.epoch,
            committed=True,
            reason="",
            finished=turn.now,
            generation=generation,
        ),
        failures={},
        backoff={},
        templates={key: item for key, item in state.templates.items() if key == generation},
    )
    turn.do(act.Commit(generation))
    took = turn.now - reload.started
    turn.info(f"reloaded: generation {generation} serves alone after {took:.1f} s")
    turn.announce("ready", f"generation {generation} serves")


# -- Preflight


def preflight_passed(turn: Turn, event: ev.PreflightPassed) -> None:
    """Go on with the settings that were read."""
    reload = turn.state.reload
    if reload is None or reload.epoch != event.epoch or reload.phase is not ReloadPhase.PREFLIGHT:
        return
    phase = ReloadPhase.TEMPLATE if event.policy.preload else ReloadPhase.CANARY
    turn.set(reload=changed(reload, policy=event.policy, phase=phase, deadline=inf))
    if event.policy.preload:
        start_template(turn, reload.generation)


def preflight_failed(turn: Turn, event: ev.PreflightFailed) -> None:
    """Stay with what there is."""
    reload = turn.state.reload
    if reload and reload.epoch == event.epoch:
        abort(turn, event.error, event.traceback)


def preflight_overdue(turn: Turn, reload: Reload) -> None:
    """Stay with what there is, since the check has not ended."""
    abort(turn, f"the check took longer than {turn.now - reload.started:.0f} s")


# -- Templates


def start_template(turn: Turn, generation: int, failures: int = 0) -> None:
    """Ask for the process that holds a generation's application in memory."""
    deadline = turn.now + turn.state.policy_of(generation).boot_timeout
    _put(turn, Template(generation=generation, deadline=deadline, failures=failures))
    turn.do(act.StartTemplate(generation))


def template_ready(turn: Turn, event: ev.TemplateReady) -> None:
    """Fork from it from now on."""
    template, reload = turn.state.templates.get(event.generation), turn.state.reload
    if template is None:
        return
    _put(turn, changed(template, phase=TemplatePhase.READY, deadline=inf, failures=0))
    if reload and reload.generation == event.generation and reload.phase is ReloadPhase.TEMPLATE:
        turn.set(reload=changed(reload, phase=ReloadPhase.CANARY))


def template_failed(turn: Turn, event: ev.TemplateFailed) -> None:
    """Do without it for a while, if it is needed at all."""
    template = turn.state.templates.get(event.generation)
    if template and template.phase is not TemplatePhase.LOST:
        _lost(turn, template, event.error, event.traceback)


def template_overdue(turn: Turn, template: Template) -> None:
    """Try a lost one again, give up on one that does not get ready."""
    if template.phase is TemplatePhase.LOST:
        start_template(turn, template.generation, template.failures)
    else:
        _lost(turn, template, "it was not ready in time", "")


def _lost(turn: Turn, template: Template, error: str, traceback: str) -> None:
    state = turn.state
    what = f"the template of generation {template.generation} failed: {error}"
    if state.phase is Phase.BOOTING:
        turn.error(what, traceback)
        stop.begin(turn, 3)
    elif state.reload and template.generation == state.reload.generation:
        abort(turn, what, traceback)
    else:
        failures, seed = template.failures + 1, next_seed(state.seed)
        # At least a moment: StartTemplate may fail at once, and would then be asked for at once.
        wait = max(delay(failures, seed), 0.1)
        turn.set(seed=seed)
        deadline = turn.now + wait
        _put(
            turn,
            changed(template, phase=TemplatePhase.LOST, deadline=deadline, failures=failures),
        )
        turn.error(f"{what}; its workers serve on, trying again in {wait:.1f} s", traceback)


def _put(turn: Turn, template: Template) -> None:
    turn.set(templates={**turn.state.templates, template.generation: template})
