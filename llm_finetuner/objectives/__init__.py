"""Losses as pure functions. A parameter's name says what the function reads:

student, teacher                      [n, V] logits of a slice of the positions that count
targets                               [n] token ids of the same positions
student_features, teacher_features    [N, D] hidden states of one pair of blocks, the student's already projected

Parameters after * are options that a recipe sets. Each returns one loss a position: nats, or squared units.
"""
