from __future__ import annotations

from refresher_runner.data.subwords import learn_subwords
from refresher_runner.nn.tokens import token_names
from refresher_runner.vocabulary import SPECIAL, characters


def test_white_space_can_be_seen():
    vocabulary = characters("a b\n\tc")
    assert token_names(vocabulary, vocabulary.encode("a b\n\tc")) == ("a", "␣", "b", "↵", "→", "c")


def test_special_tokens_keep_their_names():
    vocabulary = characters("ab", SPECIAL)
    assert token_names(vocabulary, [0, 2, 4]) == ("[PAD]", "[END]", "a")


def test_subwords_are_decoded_and_halves_of_a_character_are_not():
    vocabulary = learn_subwords(["see the sea, the sun"], 260)
    assert token_names(vocabulary, vocabulary.encode("see the")) == ("se", "e", "␣the")
    assert token_names(vocabulary, vocabulary.encode("é")) == ("Ã", "©")
