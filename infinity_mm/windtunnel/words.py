"""The vocabulary of the drawn world: every word, color and place that an image can show."""

from typing import Final

FAMILIES: Final = ("shapes", "chart", "table", "document")

SHAPES: Final = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES: Final = ("small", "large")
COLORS: Final = {
    "red": (214, 40, 40),
    "green": (36, 150, 62),
    "blue": (40, 84, 214),
    "yellow": (240, 202, 20),
    "purple": (142, 52, 178),
    "orange": (246, 128, 20),
    "black": (28, 28, 28),
}
COLOR_NAMES: Final = tuple(COLORS)

PLACES: Final = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the 3 x 3 grid of places, row by row."""
PLACE_NAMES: Final = tuple(name for row in PLACES for name in row)
PLACE_ALIASES: Final = {
    "top left": ("upper left",),
    "top": ("top center", "top middle"),
    "top right": ("upper right",),
    "left": ("center left", "middle left"),
    "center": ("middle",),
    "right": ("center right", "middle right"),
    "bottom left": ("lower left",),
    "bottom": ("bottom center", "bottom middle"),
    "bottom right": ("lower right",),
}

ITEMS: Final = (
    "Tea", "Rice", "Milk", "Bread", "Corn", "Fish", "Egg", "Apple", "Pear", "Plum", "Lemon", "Cake",
    "Soup", "Salt", "Nuts", "Oil", "Beef", "Bean", "Kiwi", "Lime", "Fig", "Mint", "Leek", "Ham",
)  # fmt: skip
"""Labels of bars and of table rows."""
MAX_VALUE: Final = 20
"""Highest value of a bar; the axis always ends here, so that heights can be compared between charts."""
TITLES: Final = ("Sales", "Shop", "Farm", "Menu", "Trade", "Week", "Store", "Fair")
ITEM_HEADERS: Final = ("Item", "Food")
NUMBER_HEADERS: Final = ("Qty", "Price", "Cost", "Sold", "Stock", "Rank", "Votes", "Bags")

SIGN_WORDS: Final = (
    "STOP", "EXIT", "OPEN", "SALE", "PUSH", "PULL", "SLOW", "TAXI", "BUS", "CAFE", "ZOO", "PARK",
    "HOTEL", "BANK", "NEWS", "FAST", "WAIT", "GO", "NO", "WALK", "QUIET", "FIRE", "SHOP", "GATE",
)  # fmt: skip
NAMES: Final = ("Ana", "Ben", "Eva", "Leo", "Mia", "Tom", "Zoe", "Max", "Ida", "Sam", "Kim", "Amy")
CITIES: Final = ("Rome", "Oslo", "Lima", "Paris", "Cairo", "Bern", "Delhi", "Tokyo", "Kyiv", "Quito")
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
CODE_CHARACTERS: Final = "ACEFHKLMNPRTUXY34679"
"""Letters and digits that stay apart at 10 px: no 0 or O, no 1 or I, no 5 or S, no 8 or B, no 2 or Z."""
FIELDS: Final = ("Name", "City", "Day", "Total", "Code", "Room", "Age")

NUMBER_WORDS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip


def plural(noun: str) -> str:
    """`star` becomes `stars`, `red cross` becomes `red crosses`."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def with_article(noun: str) -> str:
    """`orange star` becomes `an orange star`."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def listing(parts: list[str]) -> str:
    """`["a", "b", "c"]` becomes `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
