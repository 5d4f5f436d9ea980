"""Measuring a model: its loss and its score on items of every ability."""
