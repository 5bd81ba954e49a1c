"""The whole service over minutes: with processes that are killed (`chaos`), and under load (`soak`)."""
