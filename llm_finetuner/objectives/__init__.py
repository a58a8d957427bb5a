"""Losses as pure functions. A parameter's name says what the function reads:

student, teacher                        [n, V] logits of a slice of the positions that count
targets                                 [n] token ids of the same positions
student_features, teacher_features      [N, D] hidden states of one pair of blocks, the student's already projected
student_hidden, teacher_hidden          [N, Ds], [N, Dt] the same as they are: for losses that compare no widths
student_embeddings, teacher_embeddings  [N, D] what goes into the first block, the student's already projected
student_attention, teacher_attention    [N, H, T] where each position looks: probabilities over its sequence's tokens
student_states, teacher_states          {"query", "key", "value"} of one pair of blocks, each [N, D], heads side by side
examples                                [N] the sequence of the batch that a position belongs to, ascending

Parameters after * are options that a recipe sets. Each returns one loss a position, [n] or [N]: nats, or squared units.
A loss over pairs or triples of positions takes them within a sequence, so that batch size 1 works and no position's
loss depends on how the batch was made up.
"""
