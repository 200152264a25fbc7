import sys
from pathlib import Path

EXPERT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(EXPERT), str(EXPERT / "data"), str(Path(__file__).resolve().parent)]
