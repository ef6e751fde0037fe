import torch

from nbhelpers.inputs.token_classes import token_classes


class Pieces:
    words = ("ĠThe", "Ġwha", "le", "Ġswam", ".", "ĠThe", "Ġwha", "les", "Ġof", "fer", ",", "Ġof", "ĠĠ", "7")

    def convert_ids_to_tokens(self, ids):
        return [self.words[i] for i in ids]


def test_every_token_of_a_text():
    ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 7, 8, 9, 10, 11, 12, 13]])
    found = token_classes(Pieces(), ids)
    at = {name: [int(k) + 1 for k in kinds[0].nonzero()[0]] for name, kinds in found.items()}
    assert at == {
        "all": list(range(1, 14)),
        "function word": [5, 11],  # The, of; not "of" of "offer"
        "content word": [1, 3, 6, 8],
        "word continuation": [2, 7, 9],
        "repeated bigram": [6],  # The wha
        "sentence start": [5],
        "first third": [1, 2, 3, 4, 5],
        "middle third": [6, 7, 8, 9],
        "last third": [10, 11, 12, 13],
    }
