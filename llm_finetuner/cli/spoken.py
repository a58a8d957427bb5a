"""What the menu says: titles, explanations for someone who sees a question for the first time, choices in words."""

EXAMPLE_STUDENT, EXAMPLE_TEACHER = "gpt2", "gpt2-medium"
EXAMPLES = {  # task -> (student, teacher)
    "causal_lm": (EXAMPLE_STUDENT, EXAMPLE_TEACHER),
    "classification": ("distilbert/distilbert-base-uncased", "textattack/bert-base-uncased-SST-2"),
    "multi_label_classification": ("distilbert/distilroberta-base", "SamLowe/roberta-base-go_emotions"),
    "token_classification": ("distilbert/distilbert-base-cased", "dslim/bert-base-NER"),
    "masked_lm": ("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased"),
    "seq2seq_lm": ("google-t5/t5-small", "google-t5/t5-base"),
    "forecasting": ("patch", "linear"),
    "sequence_regression": ("s4d", "outputs/s4d-full"),
}
MEMBERS = {
    "forecasting": "outputs/time_llm-full linear"
}  # several teachers, where the example above does not do
TASKS = {  # task -> (title, what it means)
    "causal_lm": ("Write text", "Goes on with what it is given: chat, answers, stories (GPT, Llama)"),
    "classification": ("Classify texts", "One label for a text or a pair of texts (BERT)"),
    "multi_label_classification": ("Classify texts, several labels each", "Any number of labels for a text"),
    "token_classification": ("Tag words", "A label for each word, such as names of people (BERT)"),
    "masked_lm": ("Fill in hidden words", "From the words around them, as BERT itself was trained"),
    "seq2seq_lm": ("Transform text", "One text into another: summaries, translations (T5, BART)"),
    "forecasting": (
        "Forecast series",
        "The next steps of numbers over time, from the last ones (Time-LLM, a line)",
    ),
    "sequence_regression": (
        "Numbers at every sample",
        "A sequence of numbers into another, complex or real: radar columns into focused ones (S4D)",
    ),
}
TITLES = {
    "task": "What is the model for?",
    "student.name": "Student model",
    "student.from_scratch": "Start from new weights?",
    "teacher.from_scratch": "Start from new weights?",
    "teacher.kind": "What teaches?",
    "teacher.name": "Teacher model",
    "teacher.options.members": "Teacher models",
    "teacher.options.weights": "Weights of the teachers",
    "teacher.options.path": "Folder of the cache",
    "teacher.options.url": "Address of the endpoint",
    "tuning.kind": "Which weights of the student move?",
    "data.source": "Training data",
    "data.config": "Configuration of the data set",
    "data.split": "Split",
    "data.prefix": "What stands before every source?",
    "data.samples": "How many rows?",
    "data.max_length": "Longest example, in tokens",
    "options.feature_layers": "Layers to match",
    "options.by": "What teaches the student?",
    "advanced": "Change other settings?",
    "more": "Settings to change",
    "output": "Output folder",
    "job.k": "Tokens to keep a position",
    "job.to": "Where to",
    "job.share": "Share of the teacher",
    "data.series.lookback": "Look-back",
    "data.series.horizon": "Horizon",
    "data.series.split": "How are the rows cut?",
    "data.series.description": "What are the data?",
    "student.shape": "How large is it?",
    "student.init": "What does the student begin with?",
    "train.steps": "Steps",
}
WHY = {  # where the help of the flag is too short for someone who sees it for the first time
    "student.name": "The model to train: a folder (Tab completes), or a name on the hub.",
    "student.from_scratch": "Only the configuration of the model is read then.",
    "teacher.from_scratch": "Only the configuration of the model is read then; its draw is another than the student's.",
    "teacher.kind": "",
    "teacher.name": "The bigger model to learn from. Its tokenizer must be the student's.",
    "teacher.options.members": "Folders or hub names, separated by blanks; their tokens must be the student's.",
    "teacher.options.path": "The command cache, or k in the menu, writes one.",
    "teacher.options.url": "Any server of completions that returns top log-probabilities: vLLM, SGLang, llama.cpp.",
    "tuning.kind": "All of them learn most; an adapter needs far less memory.",
    "data.source": "A .jsonl .json .csv .tsv .parquet .txt file, a folder, a glob, or a data set on the hub.",
    "data.config": "Hub data sets may come in several, such as wikitext-2-raw-v1.",
    "data.split": "The part of the data set to train on.",
    "data.prefix": 'T5 has learned to be told what to do: "summarize: ", with a blank behind it. none: nothing.',
    "options.temperature": "1 to 10. How much of the teacher's doubt the student sees. 1: probabilities as they are; "
    "2: the usual softening; 5: unlikely tokens count clearly; 10: nearly their ranking only. 4..1: from 4 down to 1.",
    "options.alpha": "0 to 1: the weight of the ground truth; the teacher has the rest. 0: the teacher only; "
    "0.5: half and half; 1: the data only, the teacher is unused.",
    "options.feature_layers": "Student blocks from 0 (0,3,6), student:teacher pairs (0:1,3:7), or a map: uniform, "
    "last, skip, first-last, final. auto: four, spread evenly, each with the teacher block at the same depth.",
    "options.layers": "For objectives that compare blocks: numbers (0,3,6), pairs (0:1,3:7) or uniform, last, skip, "
    "first-last, final. auto: four, spread evenly.",
    "options.output_weight": "0: hidden states only. Above 0: the teacher's output probabilities too, so weighted; "
    "only then does the temperature matter.",
    "options.objectives": "objective=weight, separated by blanks; options follow a colon: jsd=0.5:beta=0.1. "
    "Their names: the command list objectives.",
    "train.epochs": "How often every example is seen. 3 is usual; more may memorise a small data set.",
    "train.batch_size": "Examples in one forward pass. Lower it when memory is short.",
    "train.learning_rate": "The size of a step. auto: 2e-4 for adapters, 5e-5 for full tuning, 1e-3 for new weights.",
    "data.max_length": "Longer examples are cut. Memory and time grow with it.",
    "data.samples": "A number takes the first N rows only: good for a trial.",
    "advanced": "Schedule, precision, evaluation, checkpoints, quantisation, seed and so on.",
    "more": "Space marks, Enter goes on.",
    "output": "The model, its log and its report go here.",
    "job.k": "The most probable ones, with what the others weigh together. 50 cost 114 bytes a position.",
    "job.to": "A new folder for the cache, or a new .jsonl file for the data.",
    "job.share": "0 to 1, the truth has the rest. 0.5: half and half; more helps where rows are few; auto: five shares "
    "are tried, and the best on the validation windows is taken.",
    "data.series.lookback": "Steps that a forecast is made from. Scores of two look-backs cannot be compared.",
    "data.series.horizon": "Steps that are forecast.",
    "data.series.split": "Percent to train, select and test on, one after the other; or ett-hour, ett-minute.",
    "data.series.description": "In a sentence: Time-LLM's prompt says it.",
    "student.shape": "The command list models tells of more.",
}
WHY_SERIES = {  # of forecasters
    "data.source": "A .csv, .tsv or .parquet table: a column of times and columns of numbers, or unique_id, ds, y.",
    "student.name": "time_llm, a transformer around a language model; patch, a small transformer; linear; or a folder.",
    "teacher.name": "The folder of a run of a forecaster; or linear, a line that is fitted in a second.",
    "train.steps": "Updates of the weights. Windows overlap, so that a pass over all says little.",
    "train.batch_size": "Windows in one forward pass, each of all channels. Lower it when memory is short.",
}
WHY_SEQUENCES = {  # of models of sequences
    "data.source": "A folder with inputs.npy and targets.npy, or with train/, validation/, test/; .npz, .zarr or .csv.",
    "student.name": "s4d, a state-space model that is built here; or the folder of a run of one.",
    "teacher.name": "The folder of a run of a model of sequences.",
    "train.batch_size": "Rows in one forward pass. Lower it when memory is short.",
    "train.learning_rate": "The size of a step. auto: 1e-3 for new weights; 3e-3 to 5e-3 with a warm-up learn faster.",
}
BEGINNINGS = {  # of a student of sequences -> (title, what it means)
    "teacher": (
        "What matters of its teacher's weights",
        "The larger part of what a teacher gives; sizes are at most its",
    ),
    "seed": ("New weights", "Drawn from the seed"),
}
SHAPES = {  # what is asked of models that are built here
    "time_llm": ("backbone", "hidden_size", "num_layers", "num_heads"),
    "patch": ("hidden_size", "num_layers", "num_heads"),
}
FROM_TEACHER = "teacher/2, if you have none: every second block of the teacher."
KINDS = {  # kind of teacher -> (title, what it means)
    "live": ("One model", "It answers every batch, and stands in memory beside the student"),
    "ensemble": ("Several models", "Their weighted mean answers"),
    "cached": ("Answers in a cache", "Written once by a teacher, which is not needed in memory any more"),
    "remote": ("An endpoint", "A server that returns the most probable tokens with their log-probabilities"),
    "live_cached": (
        "One model for one epoch",
        "Its answers fill a cache, which answers in the next epochs: several epochs then cost little more than one",
    ),
    "across": (
        "A model with another tokenizer",
        "Its tokens are aligned with the student's by the text they stand for",
    ),
}
PEERS = {
    "live": ("One more model", "It learns beside the student"),
    "ensemble": ("Several more models", "All of them learn together"),
}
PEER = "The model that learns beside the student, with the same tokenizer and as many tokens."
BY = {
    "exits": "The last block teaches earlier ones: the model can stop early",
    "average": "The moving average of its own weights",
}
