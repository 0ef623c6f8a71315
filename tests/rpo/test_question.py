"""A question is its content under one tokenizer and template."""

from rpo_verl.question import TokenizerIdentity, question_key

VOCABULARY = {"a": 0, "b": 1}


def tokenizer_fingerprint(vocabulary, template):
    return TokenizerIdentity.of("name", vocabulary, template).fingerprint


def test_key_is_a_function_of_the_token_ids_and_the_fingerprint():
    fingerprint = tokenizer_fingerprint(VOCABULARY, "template")
    assert question_key([1, 2, 3], fingerprint) == question_key((1, 2, 3), fingerprint)
    assert question_key([1, 2, 3], fingerprint) != question_key([1, 2, 4], fingerprint)
    assert question_key([1, 2], fingerprint) != question_key([1, 2, 0], fingerprint)
    assert len(question_key([], fingerprint)) == 16


def test_another_tokenizer_or_template_is_another_question():
    keys = {
        question_key([1, 2], tokenizer_fingerprint(vocabulary, template))
        for vocabulary, template in [
            (VOCABULARY, "template"),
            (VOCABULARY, "other"),
            (VOCABULARY, None),
            ({"a": 1, "b": 0}, "template"),
            ({"a": 0, "c": 1}, "template"),
        ]
    }
    assert len(keys) == 5


def test_fingerprint_does_not_depend_on_the_order_of_the_vocabulary():
    assert tokenizer_fingerprint({"b": 1, "a": 0}, "t") == tokenizer_fingerprint(VOCABULARY, "t")
