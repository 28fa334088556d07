"""Folders as Claude Code and Codex leave them, written from one list of requests: with everything that makes them hard to count.

Answers that stream are several lines, sessions that are resumed or forked repeat what was before, sub-agents replay their parent's
messages, the last line may be half written (providers.md 6.5).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tokentra_dagster.simulator.truth import iso


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request, in the canonical units of `records`: `input_tokens` holds cache reads and writes."""

    at: datetime
    session: str
    model: str
    cwd: str
    input_tokens: int
    output_tokens: int
    cached: int
    written_5m: int = 0
    written_1h: int = 0
    reasoning: int = 0
    is_subagent: bool = False


def requests(seed: int, start: datetime, end: datetime, models: Sequence[str], count: int) -> list[LoggedRequest]:
    """So many requests over `[start, end)`, in order of time, of a few sessions in a few directories."""
    generator = random.Random(seed)
    seconds = sorted(generator.sample(range(int((end - start).total_seconds())), count))
    found = []
    for second in seconds:
        session, sent = generator.randrange(8), generator.randrange(2_000, 400_000)
        cached = generator.randrange(sent)
        written = generator.randrange(sent - cached)
        one_hour = generator.randrange(written + 1)
        found.append(
            LoggedRequest(
                at=start + timedelta(seconds=second), session=f"00000000-0000-4000-8000-{seed:06}{session:06}", model=generator.choice(models),
                cwd=f"/home/dev/{('shop', 'billing', 'tools')[session % 3]}", input_tokens=sent, output_tokens=generator.randrange(1, 8_000),
                cached=cached, written_5m=written - one_hour, written_1h=one_hour, reasoning=generator.randrange(2),
                is_subagent=generator.random() < 0.2,
            )
        )  # fmt: skip
    return found


def write_claude_code(folder: Path, found: Iterable[LoggedRequest], seed: int = 0) -> None:
    """`projects/DIRECTORY/SESSION.jsonl`, sub-agents below the session, one resumed session, one half line."""
    generator = random.Random(seed)
    files: dict[Path, list[dict[str, Any]]] = {}
    for number, one in enumerate(found):
        directory = folder / "projects" / one.cwd.replace("/", "-")
        main = directory / f"{one.session}.jsonl"
        own = directory / one.session / "subagents" / f"agent-{one.session[-3:]}.jsonl" if one.is_subagent else main
        lines = [
            _message(one, f"msg_{one.session[-12:]}{number:06}", f"req_{one.session[-12:]}{number:06}", part)
            for part in (one.output_tokens // 3, one.output_tokens)
        ]
        # The prompt, and what only mentions usage, are lines, too.
        files.setdefault(own, []).extend(
            [{"type": "user", "timestamp": iso(one.at), "message": {"role": "user", "content": 'SECRET PROMPT "usage"'}}, *lines]
        )
        if not one.is_subagent and generator.random() < 0.2:
            agent = directory / one.session / "subagents" / "agent-replay.jsonl"
            replay = _message(one, f"msg_{one.session[-12:]}{number:06}", f"req_other_{number}", one.output_tokens) | {
                "isSidechain": True
            }
            files.setdefault(agent, []).append(replay)
        if generator.random() < 0.1:
            synthetic = _message(one, f"msg_s{number}", f"req_s{number}", 5)
            synthetic["message"]["model"] = "<synthetic>"
            files[own].append(synthetic)
    for path, lines in list(files.items()):
        if "subagents" not in path.parts and generator.random() < 0.4:
            files[path.with_name(f"resumed-{path.name}")] = lines[: len(lines) // 2]
    for path, lines in files.items():
        _write(path, lines, tail='{"type":"assistant","message":{"usage":{"input_tok')


def write_codex(folder: Path, found: Iterable[LoggedRequest], seed: int = 0) -> None:
    """`sessions/YYYY/MM/DD/rollout-...-SESSION.jsonl`, one fork that replays its parent, one session also among the archived."""
    generator = random.Random(seed)
    sessions: dict[str, list[LoggedRequest]] = {}
    for one in found:
        sessions.setdefault(one.session, []).append(one)
    parent: tuple[str, list[dict[str, Any]]] | None = None
    for number, (session, own) in enumerate(sessions.items()):
        lines: list[dict[str, Any]] = [_codex(own[0].at, "session_meta", {"id": session, "cwd": own[0].cwd})]
        total = dict.fromkeys(
            ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens", "total_tokens"), 0
        )
        if parent and number % 2:
            # A fork: the parent's events with times of its own, and the parent's sums to go on from.
            lines[0]["payload"]["forked_from_id"] = parent[0]
            replayed = [line | {"timestamp": iso(own[0].at)} for line in parent[1][1:]]
            lines += replayed
            total = dict([line for line in replayed if line["payload"].get("info")][-1]["payload"]["info"]["total_token_usage"])
        for one in own:
            last = {
                "input_tokens": one.input_tokens, "cached_input_tokens": one.cached, "output_tokens": one.output_tokens,
                "reasoning_output_tokens": one.reasoning, "total_tokens": one.input_tokens + one.output_tokens,
            }  # fmt: skip
            total = {name: total[name] + last[name] for name in total}
            info: dict[str, Any] = {"total_token_usage": total, "last_token_usage": last}
            if generator.random() < 0.3:
                del info["last_token_usage"]
            lines.append(_codex(one.at, "turn_context", {"model": one.model, "cwd": one.cwd}))
            lines.append(_codex(one.at, "response_item", {"type": "message", "content": "SECRET PROMPT"}))
            event = _codex(one.at, "event_msg", {"type": "token_count", "info": info})
            lines += [event, event] if generator.random() < 0.2 else [event]
            lines.append(_codex(one.at, "event_msg", {"type": "token_count", "info": None}))
        place = f"{own[0].at:%Y/%m/%d}/rollout-{own[0].at:%Y-%m-%dT%H-%M-%S}-{session}.jsonl"
        _write(folder / "sessions" / place, lines, tail='{"timestamp":"2026-')
        if number == 0:
            _write(folder / "archived_sessions" / place, lines[: len(lines) // 2])
        parent = parent or (session, lines)


def _message(one: LoggedRequest, message_id: str, request_id: str, output: int) -> dict[str, Any]:
    written = one.written_5m + one.written_1h
    usage = {
        "input_tokens": one.input_tokens - one.cached - written, "output_tokens": output, "cache_read_input_tokens": one.cached,
        "cache_creation_input_tokens": written, "service_tier": "standard",
        "cache_creation": {"ephemeral_5m_input_tokens": one.written_5m, "ephemeral_1h_input_tokens": one.written_1h},
    }  # fmt: skip
    message = {"id": message_id, "role": "assistant", "model": one.model, "content": "SECRET ANSWER", "usage": usage}
    return {
        "type": "assistant", "timestamp": iso(one.at + timedelta(seconds=1 if output == one.output_tokens else 0)), "sessionId": one.session,
        "cwd": one.cwd, "requestId": request_id, "isSidechain": one.is_subagent, "message": message,
    }  # fmt: skip


def _codex(at: datetime, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"timestamp": iso(at), "type": kind, "payload": payload}


def _write(path: Path, lines: Sequence[dict[str, Any]], tail: str = "") -> None:
    """With the time of its last line, as a file has that was written by and by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    last = max(datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines)
    os.utime(path, (last, last))
