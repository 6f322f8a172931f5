"""Durable trainings: their records, their folders, their queue."""
