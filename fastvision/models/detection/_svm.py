"""Linear SVMs on features of many regions, most of which are easy negatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._optional import optional

_ABSENT = -100.0  # the margin of a class without an object


class LinearSVMs:
    """One SVM per class, trained again whenever enough hard negatives are known (Felzenszwalb,
    Girshick, McAllester and Ramanan, Object detection with discriminatively trained part-based
    models, 2010, section 4).

    Args:
        positives: for each class the features [n, D] of its objects; of a mean norm of 20 at best,
            for which ``penalty`` is meant.
        penalty: C of the loss; positives count twice.
        patience: new hard negatives of a class before it is trained again.
    """

    def __init__(
        self, positives: Sequence[Tensor], *, penalty: float = 1e-3, patience: int = 2000
    ) -> None:
        self._positives = [x.cpu() for x in positives]
        self._negatives = [x[:0] for x in self._positives]
        self._fresh: list[list[Tensor]] = [[] for _ in positives]
        self._trained = torch.zeros(len(positives), dtype=torch.bool)
        self.penalty, self.patience = penalty, patience
        self.weight = torch.zeros(len(positives), self._positives[0].shape[1])
        self.bias = torch.full((len(positives),), _ABSENT)

    def add(self, features: Tensor, negative: Tensor) -> None:
        """Takes what is hard: not yet on the right side of the margin.

        Args:
            features: [n, D].
            negative: bool [n, classes], whether a region is a negative of a class.
        """
        features = features.cpu()
        hard = features @ self.weight.T + self.bias > -1
        hard = negative.cpu() & (hard | ~self._trained)
        for k, rows in enumerate(hard.T):
            self._fresh[k].append(features[rows])
            if sum(map(len, self._fresh[k])) >= self.patience:
                self._train(k)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Weights [classes, D] and biases [classes], from all that was added.

        Raises:
            ValueError: a class has objects and nothing else was added.
        """
        for k in range(len(self._positives)):
            self._train(k)
        return self.weight, self.bias

    def _train(self, k: int) -> None:
        positives = self._positives[k]
        negatives = torch.cat((self._negatives[k], *self._fresh[k]))
        self._fresh[k].clear()
        if not len(positives):
            return
        if not len(negatives):
            raise ValueError(f"class {k + 1} has no region that is none of its objects")
        svm = optional("sklearn.svm").LinearSVC(
            C=self.penalty,
            loss="hinge",
            class_weight={1: 2},
            intercept_scaling=10,  # so that the bias is hardly shrunk
            tol=0.01,
            random_state=0,
        )
        labels = torch.cat((torch.ones(len(positives)), -torch.ones(len(negatives))))
        svm.fit(torch.cat((positives, negatives)).numpy(), labels.numpy())
        self.weight[k] = torch.from_numpy(svm.coef_[0])
        self.bias[k] = float(svm.intercept_[0])
        self._trained[k] = True
        margins = negatives @ self.weight[k] + self.bias[k]
        self._negatives[k] = negatives[margins > -1.2]
