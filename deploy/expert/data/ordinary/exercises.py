"""Small functions as people ask models for them: hints of types, a docstring with examples, a body.

Ordinary code, on which an expert is to change nothing. None of it is from a published benchmark.
"""
from collections import Counter, deque
from datetime import date, timedelta
from typing import Dict, Iterable, Iterator, List, Optional, Tuple


def running_total(amounts: List[float]) -> List[float]:
    """Return the total so far after each amount.

    >>> running_total([2, 3, 5])
    [2, 5, 10]
    >>> running_total([])
    []
    """
    totals = []
    total = 0
    for amount in amounts:
        total += amount
        totals.append(total)
    return totals


def split_bill(cents: int, people: int) -> List[int]:
    """Split a bill into shares that differ by at most one cent, the larger ones first.

    >>> split_bill(1000, 3)
    [334, 333, 333]
    """
    share, rest = divmod(cents, people)
    return [share + 1] * rest + [share] * (people - rest)


def to_hours(minutes: int) -> str:
    """ Format a number of minutes as hours and minutes.
    >>> to_hours(135)
    '2:15'
    >>> to_hours(5)
    '0:05'
    """
    return f"{minutes // 60}:{minutes % 60:02d}"


def chunked(items: List[int], size: int) -> List[List[int]]:
    """Cut a list into pieces of `size`; the last one may be shorter.

    >>> chunked([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4], [5]]
    """
    # Your code here
    return [items[start:start + size] for start in range(0, len(items), size)]


def merge_intervals(intervals: List[Tuple[int, int]]) -> List[Tuple[int, int]]:
    """Join intervals that overlap or touch.

    >>> merge_intervals([(1, 3), (2, 5), (8, 9)])
    [(1, 5), (8, 9)]
    """
    merged: List[Tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def invert(mapping: Dict[str, int]) -> Dict[int, List[str]]:
    """Turn a mapping around: each value with the sorted keys that have it.

    >>> invert({"a": 1, "b": 2, "c": 1})
    {1: ['a', 'c'], 2: ['b']}
    """
    inverted: Dict[int, List[str]] = {}
    for key, value in mapping.items():
        inverted.setdefault(value, []).append(key)
    return {value: sorted(keys) for value, keys in inverted.items()}


def title_words(text: str, small: Iterable[str] = ("a", "of", "the")) -> str:
    """Capitalise the words of a title except small ones, unless they come first.

    >>> title_words("the art of the deal")
    'The Art of the Deal'
    """
    words = text.split()
    # The first word is always capitalised.
    return " ".join(word.capitalize() if number == 0 or word not in small else word for number, word in enumerate(words))


def next_weekday(day: date) -> date:
    """Return the day itself if it is a weekday, otherwise the Monday after it.

    >>> next_weekday(date(2024, 6, 1))
    datetime.date(2024, 6, 3)
    """
    while day.weekday() > 4:
        day += timedelta(days=1)
    return day


def moving_average(values: List[float], width: int) -> List[float]:
    """Return the mean of each window of `width` neighbours.

    >>> moving_average([1, 2, 3, 4], 2)
    [1.5, 2.5, 3.5]
    """
    window = deque(maxlen=width)
    averages = []
    for value in values:
        window.append(value)
        if len(window) == width:
            averages.append(sum(window) / width)
    return averages


def count_vowel_runs(text: str) -> int:
    """Count the groups of vowels that stand together.

    >>> count_vowel_runs("queueing aloud")
    3
    """
    runs = 0
    inside = False
    for letter in text.lower():
        is_vowel = letter in "aeiou"
        if is_vowel and not inside:
            runs += 1
        inside = is_vowel
    return runs


def transpose(rows: List[List[int]]) -> List[List[int]]:
    """Swap rows and columns of a table.

    >>> transpose([[1, 2, 3], [4, 5, 6]])
    [[1, 4], [2, 5], [3, 6]]
    """
    return [list(column) for column in zip(*rows)]


def top_words(text: str, count: int) -> List[str]:
    """Return the most frequent words, ties in alphabetical order.

    >>> top_words("b a b c a b", 2)
    ['b', 'a']
    """
    frequencies = Counter(text.split())
    ranked = sorted(frequencies, key=lambda word: (-frequencies[word], word))
    return ranked[:count]


def parse_pairs(text: str) -> Dict[str, str]:
    """Parse settings such as "a=1; b=2" into a dictionary.

    >>> parse_pairs("colour = red; size=XL;")
    {'colour': 'red', 'size': 'XL'}
    """
    pairs = {}
    for part in text.split(";"):
        if not part.strip():
            continue
        key, _, value = part.partition("=")
        pairs[key.strip()] = value.strip()
    return pairs


def is_balanced_split(numbers: List[int]) -> bool:
    """Tell whether the list can be cut so that both parts have the same sum.

    >>> is_balanced_split([1, 2, 3, 6])
    True
    >>> is_balanced_split([1, 2])
    False
    """
    total = sum(numbers)
    left = 0
    for number in numbers:
        left += number
        if left * 2 == total:
            return True
    return False


def zigzag(items: List[int]) -> List[int]:
    """Take items from both ends in turn, beginning with the first.

    >>> zigzag([1, 2, 3, 4, 5])
    [1, 5, 2, 4, 3]
    """
    queue = deque(items)
    taken = []
    while queue:
        taken.append(queue.popleft())
        if queue:
            taken.append(queue.pop())
    return taken


def steps_to_one(number: int) -> int:
    """Count how often a number must be halved, rounding down, until it is 1.

    >>> steps_to_one(9)
    3
    """
    steps = 0
    while number > 1:
        number //= 2
        steps += 1
    return steps


def first_gap(numbers: List[int]) -> Optional[int]:
    """Return the smallest missing number between the least and the greatest, or None.

    >>> first_gap([3, 5, 6])
    4
    >>> first_gap([1, 2, 3]) is None
    True
    """
    if not numbers:
        return None
    present = set(numbers)
    for number in range(min(numbers), max(numbers)):
        if number not in present:
            return number
    return None


def weighted_mean(values: List[float], weights: List[float]) -> float:
    """Return the mean of values with weights.

    >>> weighted_mean([1.0, 3.0], [3.0, 1.0])
    1.5
    """
    if len(values) != len(weights):
        raise ValueError("as many weights as values are needed")
    total = sum(weights)
    if total == 0:
        raise ValueError("the weights are all zero")
    return sum(value * weight for value, weight in zip(values, weights)) / total


def compress_ranges(numbers: List[int]) -> str:
    """Write sorted numbers as ranges.

    >>> compress_ranges([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    ranges: List[List[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def common_suffix(first: str, second: str) -> str:
    """Return the longest text with which both end.

    >>> common_suffix("reading", "walking")
    'ing'
    """
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length:]


def leaders(values: List[int]) -> List[int]:
    """Return the values that are greater than everything behind them.

    >>> leaders([7, 4, 5, 2])
    [7, 5, 2]
    """
    found = []
    best = None
    for value in reversed(values):
        if best is None or value > best:
            found.append(value)
            best = value
    return found[::-1]


def seating(names: List[str], per_table: int) -> Dict[int, List[str]]:
    """Assign guests to numbered tables in order.

    >>> seating(["Ann", "Bob", "Cy"], 2)
    {1: ['Ann', 'Bob'], 2: ['Cy']}
    """
    tables: Dict[int, List[str]] = {}
    for number, name in enumerate(names):
        tables.setdefault(number // per_table + 1, []).append(name)
    return tables


def checksum_digit(code: str) -> int:
    """Compute the check digit of a barcode: digits times 3 and 1 in turn, up to the next ten.

    >>> checksum_digit("400638133393")
    1
    """
    # Odd places count once, even places three times.
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(code))
    return (10 - total % 10) % 10


def rotate(items: List[int], places: int) -> List[int]:
    """Move every item `places` to the right, around the end.

    >>> rotate([1, 2, 3, 4], 1)
    [4, 1, 2, 3]
    """
    if not items:
        return []
    cut = -places % len(items)
    return items[cut:] + items[:cut]


def grid_neighbours(row: int, column: int, size: int) -> Iterator[Tuple[int, int]]:
    """Yield the cells beside a cell of a square grid.

    >>> list(grid_neighbours(0, 0, 3))
    [(0, 1), (1, 0)]
    """
    for down, right in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        if 0 <= row + down < size and 0 <= column + right < size:
            yield row + down, column + right


def loan_schedule(principal: float, rate: float, payment: float) -> List[float]:
    """Return what is still owed after each yearly payment, the last being zero.

    >>> loan_schedule(100.0, 0.0, 60.0)
    [40.0, 0.0]
    """
    owed = []
    while principal > 0:
        principal = max(0.0, principal * (1 + rate) - payment)
        owed.append(round(principal, 2))
    return owed


def pad_table(rows: List[List[str]]) -> str:
    """Format rows so that columns line up.

    >>> print(pad_table([["id", "name"], ["17", "x"]]))
    id name
    17 x
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def longest_streak(days: List[bool]) -> int:
    """Return the greatest number of true values in a row.

    >>> longest_streak([True, True, False, True])
    2
    """
    longest = current = 0
    for day in days:
        current = current + 1 if day else 0
        longest = max(longest, current)
    return longest


def dedupe(items: List[str]) -> List[str]:
    """Remove repeated items and keep the order of the first ones.

    >>> dedupe(["b", "a", "b"])
    ['b', 'a']
    """
    # TODO: keep the last ones instead if asked to
    return list(dict.fromkeys(items))


def caesar(text: str, shift: int) -> str:
    """Shift the small letters of a text through the alphabet.

    >>> caesar("xyz!", 2)
    'zab!'
    """
    shifted = ""
    for letter in text:
        if "a" <= letter <= "z":
            shifted += chr((ord(letter) - ord("a") + shift) % 26 + ord("a"))
        else:
            shifted += letter
    return shifted


def binary_search(values: List[int], wanted: int) -> int:
    """Return the index of `wanted` in a sorted list, or -1.

    >>> binary_search([1, 4, 6, 9], 6)
    2
    >>> binary_search([1, 4], 5)
    -1
    """
    low, high = 0, len(values) - 1
    while low <= high:
        middle = (low + high) // 2
        if values[middle] == wanted:
            return middle
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def apply_discounts(price: float, discounts: List[float]) -> float:
    """Apply percentages one after the other and round to cents.

    >>> apply_discounts(200.0, [10, 50])
    90.0
    """
    for discount in discounts:
        price *= 1 - discount / 100
    return round(price, 2)


def nested_depth(value: list) -> int:
    """Return how deep lists are nested; an empty list has depth 1.

    >>> nested_depth([1, [2, [3]]])
    3
    """
    return 1 + max((nested_depth(item) for item in value if isinstance(item, list)), default=0)


def elevator_moves(floors: List[int]) -> int:
    """Sum the floors that an elevator passes on its way from 0.

    >>> elevator_moves([3, 1, 4])
    8
    """
    position = 0
    moves = 0
    for floor in floors:
        moves += abs(floor - position)
        position = floor
    return moves
