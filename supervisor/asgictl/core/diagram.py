"""The life of a worker as a picture, drawn from the table."""

from asgictl.core.state import TRANSITIONS, WorkerState


def mermaid() -> str:
    """Return ``TRANSITIONS`` as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {WorkerState.STARTING.name}"]
    for source, arrows in TRANSITIONS.items():
        labels: dict[WorkerState, list[str]] = {}
        for happening, target in arrows.items():
            labels.setdefault(target, []).append(happening)
        for target, happenings in labels.items():
            lines.append(f"    {source.name} --> {target.name}: {', '.join(happenings)}")
    lines.append(f"    {WorkerState.GONE.name} --> [*]")
    return "\n".join(lines)
