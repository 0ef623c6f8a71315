"""Imported once, by the server that worker processes are forked from, so that each of them starts ready.

The parser fills its tables while it reads; a process with empty ones takes seconds for its first answers.
"""

from rpo_verl.rewards.verification import compare

for _answer in (
    "42", "-1,234.5", "\\frac{1}{2}", "\\text{no}", "1, 2", "\\{1,2\\}", "(1,2]", "(-\\infty,3)\\cup[5,\\infty)",
    "x^2+2x=5", "3\\sqrt{2}+\\pi", "1.5\\times 10^{-3}", "50\\%", "y\\le 3", "\\sin(x_{1})", "e^{-kt}", "2\\text{ cm}",
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "10^\\circ", "\\log_2 3", "n!", "|x|", "\\pm 3",
    "3 hours", "2+3i", "1e-9", "1010_2", "|x|<3",
):  # fmt: skip
    compare(_answer, _answer, whole=True)
    compare(_answer, "7", whole=True)
compare("42", "The final answer is $x=42$.", whole=False)
