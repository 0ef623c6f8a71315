"""`rpo-verl cache build` with the real vLLM: interrupted and continued (the fixture `built`).

`test_world_size_two.py` trains from the store.
"""

from rpo_verl.rpo import store


def test_one_answer_per_question_without_the_end_token(built):
    cache, manifest = store.load(built / "store")
    assert (manifest.entries, manifest.step) == (8, 0)
    assert not (built / "store.partial").exists()
    for _, answer in cache.items():
        assert 0 < len(answer.tokens) < 208
        assert int(answer.tokens.max()) < 256  # characters only
        assert answer.reward == float(answer.correct)
