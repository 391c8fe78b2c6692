"""The table of rules in docs/doctor.md: `python -m workbench.doctor.table` prints it, a test compares it."""

from __future__ import annotations

from workbench.doctor import THEMES


def rules_table() -> str:
    """Markdown: a heading and a table for each theme, one row a rule with the thread or paper it comes from."""
    parts = []
    for theme in THEMES:
        rows = ["| rule | what it finds | 发现的问题 | from |", "|---|---|---|---|"]
        for rule in theme.RULES:
            title, url = rule.source
            origin = f"[{title}]({url})".replace("[QUESTION] ", "").replace("[Question] ", "") if url else title
            rows.append(f"| `{rule.name}` | {rule.title['en']} | {rule.title['zh']} | {origin} |")
        about = (theme.__doc__ or "").splitlines()[0]
        parts.append(f"### {about}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(rules_table(), end="")
