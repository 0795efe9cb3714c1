"""Accuracy: models over labelled data, part by part, on one machine or many."""
