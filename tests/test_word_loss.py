"""The encoder's second task: to tell which words the captions say."""

from __future__ import annotations

import torch

from captioner.training.word_loss import WordLoss

DOG, SOFA, RARE, FUNCTION_WORD = 10, 11, 12, 5
CONTENT = {DOG, SOFA, RARE}


def word_loss() -> WordLoss:
    """Eight photos of dogs, eight of sofas, one of something rare; and narratives, which say all of it."""
    main = [[[1, FUNCTION_WORD, DOG, 2]] * 2] * 8 + [[[1, SOFA, 2], [1, 2]]] * 8 + [[[1, RARE, 2]]]
    told = [[[1, DOG, SOFA, RARE, 2]]] * 10
    return WordLoss(4, [main, told], [False, True], CONTENT)


def test_words_are_those_of_the_captions_of_many_photos():
    loss = word_loss()
    assert loss.words == [DOG, SOFA]
    assert loss.shares[0][[0, 8, 16]].tolist() == [[1, 0], [0, 0.5], [0, 0]]
    assert loss.shares[1][0].tolist() == [1, 1]


def test_it_begins_with_what_is_common_and_learns_what_features_tell():
    loss = word_loss().eval()
    photos = [(0, [0, 8]), (1, [0])]
    features = torch.zeros(3, 4, 2, 2)
    features[0, 0] = features[1, 1] = features[2, :2] = 3.0
    torch.testing.assert_close(loss.head.bias.sigmoid(), torch.tensor([8 / 17, 4 / 17]))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(loss(features, photos))
        optimizer.step()
    with torch.no_grad():
        dog, sofa, both = loss.head(features.mean((2, 3))).sigmoid()
    assert dog[0] > 0.8 > 0.2 > dog[1]
    assert 0.3 < sofa[1] < 0.7, "half of its captions say so"
    assert both.min() > 0.8, "a narrative that says all of it"
