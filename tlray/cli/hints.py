"""What is answered to words that are no command: what to type instead."""

import difflib

from tlray.commands import COMMANDS

_MEANT = {
    "extract": ("embed", "encode", "embeddings", "features", "vectors", "backfill", "run", "update", "sync"),
    "train": ("fit", "finetune", "fine-tune", "learn", "transfer"),
    "predict": ("infer", "inference", "classify", "score", "label"),
    "index": ("build", "build-index", "build_index", "faiss"),
    "search": ("find", "query", "similar", "neighbours", "neighbors", "nearest"),
    "duplicates": ("dedup", "dedupe", "deduplicate"),
    "serve": ("server", "web", "ui", "api", "http", "start"),
    "show": ("info", "describe", "ls", "list", "status", "stat", "cat", "diff", "open"),
    "verify": ("check", "validate", "fsck"),
    "vacuum": ("clean", "gc", "prune", "delete", "rm"),
    "optimize": ("compact", "optimise", "merge"),
    "export": ("onnx", "convert"),
}
"""Words of other tools, by the command of ours that does it."""


def unknown_command(word: str) -> str:
    """What to say of a first word that is no command."""
    meant = next((name for name, words in _MEANT.items() if word.lower() in words), None)
    near = difflib.get_close_matches(word.lower(), COMMANDS, 1)
    name = meant or (near[0] if near else None)
    hint = f"did you mean `tlray {name} {COMMANDS[name].example}`? " if name else ""
    return f"unknown command {word!r}; {hint}`tlray help` lists the commands: {', '.join(COMMANDS)}"
