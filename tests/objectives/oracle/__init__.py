"""Slow, dense, float64 references of every objective, written from the formulas and not from the product.

They see whole distributions of three models at every position (the student now, the student that wrote the rollout, the
teacher) where the product sees a cache and a few logits. Gradients are autograd's on the dense formula; closed_form.py
holds those that can be written down, so that the reference is checked as well.
"""
