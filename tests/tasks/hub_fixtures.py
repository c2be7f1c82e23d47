"""Made-up rows in the real schemas of hub datasets, as Parquet files that `datasets` reads.

Each entry: the hub's features, rows, and the examples that the mapped task must give ((input, options, output); None
for a row that must be dropped).
"""

from datasets import ClassLabel, Features, Sequence, Value

STRING, INT, FLOAT = Value("string"), Value("int32"), Value("float32")
CHOICES = Sequence({"text": STRING, "label": STRING})


def text_features(*names, **more):
    return Features({**dict.fromkeys(names, STRING), **more})


def choices(*texts, labels="ABCDE"):
    return {"text": list(texts), "label": list(labels[: len(texts)])}


SETS = {
    "glue-rte": (
        text_features("sentence1", "sentence2", label=ClassLabel(names=["entailment", "not_entailment"]), idx=INT),
        [
            {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0, "idx": 0},
            {"sentence1": "It rains.", "sentence2": "It snows.", "label": 1, "idx": 1},
            {"sentence1": "Hidden.", "sentence2": "Label.", "label": -1, "idx": 2},
        ],
        [
            ("sentence 1: It rains. [SEP] sentence 2: It is wet.", ("entailment", "not_entailment"), "entailment"),
            ("sentence 1: It rains. [SEP] sentence 2: It snows.", ("entailment", "not_entailment"), "not_entailment"),
            None,
        ],
    ),
    "superglue-cb": (
        text_features(
            "premise", "hypothesis", idx=INT, label=ClassLabel(names=["entailment", "contradiction", "neutral"])
        ),
        [{"premise": "P", "hypothesis": "H", "idx": 0, "label": 1}],
        [("premise: P [SEP] hypothesis: H", ("contradiction", "entailment", "neutral"), "contradiction")],
    ),
    "sick": (
        text_features(
            "id",
            "sentence_A",
            "sentence_B",
            "entailment_AB",
            "entailment_BA",
            "sentence_A_original",
            "sentence_B_original",
            "sentence_A_dataset",
            "sentence_B_dataset",
            label=ClassLabel(names=["entailment", "neutral", "contradiction"]),
            relatedness_score=FLOAT,
        ),
        [{"sentence_A": "A dog runs", "sentence_B": "A cat runs", "label": 1, "relatedness_score": 3.0}],
        [
            (
                "sentence 1: A dog runs [SEP] sentence 2: A cat runs",
                ("contradiction", "entailment", "neutral"),
                "neutral",
            )
        ],
    ),
    "scitail": (
        text_features(
            "sentence1_binary_parse",
            "sentence1_parse",
            "sentence1",
            "sentence2_parse",
            "sentence2",
            "gold_label",
            annotator_labels=Sequence(STRING),
        ),
        [
            {
                "sentence1": "Ice melts.",
                "sentence2": "Ice is solid.",
                "gold_label": "neutral",
                "annotator_labels": ["neutral"],
            }
        ],
        [("sentence 1: Ice melts. [SEP] sentence 2: Ice is solid.", ("entailment", "neutral"), "neutral")],
    ),
    "hatexplain": (
        text_features(
            "id",
            annotators=Sequence(
                {
                    "label": ClassLabel(names=["hatespeech", "normal", "offensive"]),
                    "annotator_id": INT,
                    "target": Sequence(STRING),
                }
            ),
            rationales=Sequence(Sequence(INT)),
            post_tokens=Sequence(STRING),
        ),
        [
            {
                "id": str(i),
                "annotators": {"label": votes, "annotator_id": [1, 2, 3], "target": [["none"]] * 3},
                "rationales": [],
                "post_tokens": ["have", "a", "nice", f"day{i}"],
            }
            for i, votes in enumerate([[1, 1, 2], [0, 1, 2], [2, 2, 2]])
        ],
        [
            ("have a nice day0", ("hatespeech", "normal", "offensive"), "normal"),
            None,
            ("have a nice day2", ("hatespeech", "normal", "offensive"), "offensive"),
        ],
    ),
    "google_wellformed_query": (
        Features({"rating": FLOAT, "content": STRING}),
        [{"rating": r, "content": f"query {i}"} for i, r in enumerate([0.0, 0.5, 1.0])],
        [
            ("query 0", ("not well-formed", "well-formed"), "not well-formed"),
            None,
            ("query 2", ("not well-formed", "well-formed"), "well-formed"),
        ],
    ),
    "ethos-directed_vs_generalized": (
        text_features(
            "text",
            violence=ClassLabel(names=["not_violent", "violent"]),
            directed_vs_generalized=ClassLabel(names=["generalied", "directed"]),
            gender=ClassLabel(names=["false", "true"]),
        ),
        [{"text": "You there", "violence": 0, "directed_vs_generalized": 1, "gender": 0}],
        [("You there", ("directed", "generalized"), "directed")],
    ),
    "hate_speech18": (
        text_features(
            "text",
            user_id=INT,
            subforum_id=INT,
            num_contexts=INT,
            label=ClassLabel(names=["noHate", "hate", "idk/skip", "relation"]),
        ),
        [
            {"text": f"post {label}", "user_id": 1, "subforum_id": 1, "num_contexts": 0, "label": label}
            for label in range(3)
        ],
        [("post 0", ("hate", "noHate"), "noHate"), ("post 1", ("hate", "noHate"), "hate"), None],
    ),
    "tweet_eval-irony": (
        text_features("text", label=ClassLabel(names=["non_irony", "irony"])),
        [{"text": "oh great", "label": 1}],
        [("oh great", ("irony", "non-irony"), "irony")],
    ),
    "kilt_fever": (
        text_features(
            "id",
            "input",
            output=[{"answer": STRING, "meta": {"score": INT}, "provenance": [{"title": STRING}]}],
        ),
        [
            {"id": "1", "input": "Snow is white", "output": [{"answer": "SUPPORTS"}, {"answer": "SUPPORTS"}]},
            {"id": "2", "input": "Snow is hot", "output": [{"answer": "REFUTES"}]},
            {"id": "3", "input": "Unlabelled claim", "output": []},
        ],
        [
            ("Snow is white", ("REFUTES", "SUPPORTS"), "SUPPORTS"),
            ("Snow is hot", ("REFUTES", "SUPPORTS"), "REFUTES"),
            None,
        ],
    ),
    "boolq": (
        Features({"question": STRING, "answer": Value("bool"), "passage": STRING}),
        [
            {"question": "is ice cold", "answer": True, "passage": "Ice is frozen water."},
            {"question": "is fire cold", "answer": False, "passage": "Fire burns."},
        ],
        [
            ("passage: Ice is frozen water. [SEP] question: is ice cold", ("no", "yes"), "yes"),
            ("passage: Fire burns. [SEP] question: is fire cold", ("no", "yes"), "no"),
        ],
    ),
    "openbookqa": (
        text_features("id", "question_stem", "answerKey", choices=CHOICES),
        [
            {"id": "1", "question_stem": "Birds", "choices": choices("swim", "fly", "dig", "melt"), "answerKey": "B"},
            {"id": "2", "question_stem": "Fish", "choices": choices("swim", "swim", "dig", "melt"), "answerKey": "C"},
        ],
        [("Birds", ("swim", "fly", "dig", "melt"), "fly"), None],
    ),
    "arc_challenge": (
        text_features("id", "question", "answerKey", choices=CHOICES),
        [{"id": "1", "question": "Two?", "choices": choices("one", "two", "three", labels="123"), "answerKey": "2"}],
        [("Two?", ("one", "two", "three"), "two")],
    ),
    "commonsense_qa": (
        text_features("id", "question", "question_concept", "answerKey", choices=CHOICES),
        [
            {"id": "1", "question": "Where is milk?", "choices": choices("fridge", "moon"), "answerKey": "A"},
            {"id": "2", "question": "Hidden?", "choices": choices("fridge", "moon"), "answerKey": ""},
        ],
        [("Where is milk?", ("fridge", "moon"), "fridge"), None],
    ),
    "wiqa": (
        text_features(
            "question_stem",
            "answer_label",
            "answer_label_as_choice",
            "metadata_question_id",
            question_para_step=Sequence(STRING),
            choices=CHOICES,
        ),
        [
            {
                "question_stem": "suppose more rain, how will it affect floods.",
                "question_para_step": ["Rain falls.", "Rivers rise."],
                "answer_label": "less",
                "answer_label_as_choice": "B",
                "choices": choices("more", "less", "no effect"),
            }
        ],
        [
            (
                "Rain falls. Rivers rise. suppose more rain, how will it affect floods.",
                ("more", "less", "no effect"),
                "less",
            )
        ],
    ),
    "dream": (
        text_features("dialogue_id", "question", "answer", id=INT, dialogue=Sequence(STRING), choice=Sequence(STRING)),
        [
            {
                "id": 0,
                "dialogue_id": "1-1",
                "dialogue": ["M: Hello.", "W: Good day."],
                "question": "Who spoke first?",
                "choice": ["The woman.", "The man.", "Nobody."],
                "answer": "The man.",
            }
        ],
        [
            (
                "Who spoke first? [SEP] M: Hello. W: Good day.",
                ("The woman.", "The man.", "Nobody."),
                "The man.",
            )
        ],
    ),
    "hellaswag": (
        text_features(
            "activity_label",
            "ctx_a",
            "ctx_b",
            "ctx",
            "source_id",
            "split",
            "split_type",
            "label",
            ind=INT,
            endings=Sequence(STRING),
        ),
        [
            {"ctx": "She opens the door and", "endings": ["sings", "leaves", "flies", "melts"], "label": "1"},
            {"ctx": "A hidden label", "endings": ["a", "b", "c", "d"], "label": ""},
        ],
        [("She opens the door and", ("sings", "leaves", "flies", "melts"), "leaves"), None],
    ),
    "wino_grande": (
        text_features("sentence", "option1", "option2", "answer"),
        [
            {"sentence": "Ann thanked Eve because _ helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
            {"sentence": "Test _ row.", "option1": "Ann", "option2": "Eve", "answer": ""},
        ],
        [("Ann thanked Eve because _ helped.", ("Ann", "Eve"), "Eve"), None],
    ),
    "quarel": (
        text_features(
            "id",
            "logical_form_pretty",
            "question",
            answer_index=INT,
            logical_forms=Sequence(STRING),
            world_literals=Sequence({"world1": STRING, "world2": STRING}),
        ),
        [
            {
                "id": "1",
                "answer_index": 1,
                "logical_forms": ["f"],
                "world_literals": {"world1": ["ice"], "world2": ["sand"]},
                "question": "Where is it smoother? (A) sand (B) ice",
            }
        ],
        [("Where is it smoother? (A) sand (B) ice", ("sand", "ice"), "ice")],
    ),
    "race-middle": (
        text_features("example_id", "article", "answer", "question", options=Sequence(STRING)),
        [{"article": "Tom ran.", "answer": "C", "question": "Who ran?", "options": ["Ann", "Eve", "Tom", "Bob"]}],
        [("Who ran? [SEP] Tom ran.", ("Ann", "Eve", "Tom", "Bob"), "Tom")],
    ),
    "social_i_qa": (
        text_features("context", "question", "answerA", "answerB", "answerC", "label"),
        [
            {
                "context": "Jo won.",
                "question": "How is Jo?",
                "answerA": "sad",
                "answerB": "ill",
                "answerC": "glad",
                "label": "3\n",
            }
        ],
        [("How is Jo? [SEP] Jo won.", ("sad", "ill", "glad"), "glad")],
    ),
    "cosmos_qa": (
        text_features("id", "context", "question", "answer0", "answer1", "answer2", "answer3", label=INT),
        [
            {
                "context": "C",
                "question": "Q",
                "answer0": "a",
                "answer1": "b",
                "answer2": "c",
                "answer3": "d",
                "label": 3,
            },
            {
                "context": "C2",
                "question": "Q",
                "answer0": "a",
                "answer1": "b",
                "answer2": "c",
                "answer3": "d",
                "label": -1,
            },
        ],
        [("Q [SEP] C", ("a", "b", "c", "d"), "d"), None],
    ),
}
