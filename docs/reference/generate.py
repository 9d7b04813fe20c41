"""Writes the reference of commands and keys from the code, while the documentation is built."""

import json

from tlray.cli.flags import flags_of, usage
from tlray.commands import COMMANDS, Command
from tlray.config.keys import Key, keys_of

PAGE = "reference/commands.md"

HEAD = """# Commands and keys

Made from the code. In YAML a key with a dot is nested (`source: {uri: ...}`), in Python it is a dictionary
(`source={"uri": ...}`), or its short spelling is a keyword (`backbone="resnet50"`). `tlray COMMAND --help` shows the most used
keys, `--help-all` all of them. Besides its keys every command has `--config FILE` (YAML with the same keys, local or on S3;
flags win), `--print-config` (show the whole config and stop), `--json` (one line of JSON on a terminal, as a pipe gets it) and
`--report FILE.html` (what was done, [as a page](../guides/advise.md#reports)).
"""


def default_of(key: Key) -> str:
    """The default as YAML has it, or that there is none."""
    if key.field.is_required():
        return "**required**" if key.required else "required with its section"
    return "" if key.default in (None, ()) else f"`{json.dumps(key.default)}`"


def section(name: str, command: Command) -> str:
    """One command: what it does, an example, and its keys."""
    summary = command.summary[0].upper() + command.summary[1:]
    lines = [f"\n## tlray {name}\n", f"{summary}.\n", f"```text\n{usage(name, command)}\n```\n"]
    lines += [
        f"For example `tlray {name} {command.example}`.\n",
        "| key | flag | value | default | meaning |",
        "|---|---|---|---|---|",
    ]
    flags = flags_of(command)
    for key in keys_of(command.config).values():
        meaning = key.description.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{key.name}` | `{flags[key.name][0]}` | {key.words} | {default_of(key)} | {meaning} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    return HEAD + "".join(section(name, command) for name, command in COMMANDS.items())


if __name__ == "<run_path>":  # as mkdocs-gen-files runs it
    import mkdocs_gen_files

    with mkdocs_gen_files.open(PAGE, "w") as file:
        file.write(page())
