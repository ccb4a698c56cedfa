"""Words that several messages share."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """'1 row', '1,200 rows', '2 classes'; plural: of nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
