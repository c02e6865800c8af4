"""Exact and near duplicates of images and questions."""
