import pytest

from autoif.evaluation.kinds import kind

LENGTH = """\
Answer in at most 10 words
Use no more than 20 words
Keep the answer under 30 words!
Write between 10 and 25 words
Write exactly 12 words
Keep your response under twenty-five total words
Respond in 20 or fewer words
Use two or more sentences
Answer with exactly three sentences
Answer in one sentence
Answer with a single sentence that is exactly 100 words long
Restrict your answer to three sentences max
Use 2-3 sentences
Keep the whole answer below 150 characters
Answer in one line of at most 60 characters
Reply with a sonnet: 14 lines of 10 syllables each
Write three paragraphs separated by blank lines
Limit your response to a single paragraph
Respond with a six-word story
Reply with a story of six words
No sentence may be longer than 12 words
Let no sentence have more than 8 words
Let the number of words be a multiple of 5
The number of sentences must be even
Keep the word count below 40
Answer in a few words
Use as few words as you can: at most a couple of sentences
Be brief
Keep your answer short
Give a concise answer
Answer in one line
Use at least 50 words""".splitlines()

OTHER = """\
Put one word in bold, between double asterisks
Put one word in double quotes
Write at least two words entirely in capital letters
Use at least one word of ten letters or more
Do not use the word "and"
Use the word "time" at least twice
Use the word "two" in three places
Include the word "water"
Include the sentence "I have three words"
Include the number 7
Include at least two words in capital letters
Include three words that rhyme with each other
Use at least one word starting with the letter Q
Contain exactly one sentence that ends with a question mark
Highlight two words with asterisks
Begin the answer with the letter T
Begin with the words "I think"
Begin with a greeting of one word
Start the answer with one word in capitals
End the answer with one sentence of thanks
Let the last word be "done"
Let every second line rhyme with the line before
The second sentence must begin with "But"
Put one word per line
Put a blank line after each paragraph
Use no word of more than eight letters
Let no word have more than 8 characters
Use only words of one syllable
Use only the 1000 most common English words
Use exactly two commas
Use one comma in each sentence
Give exactly three bullet points, each starting with a hyphen
Make every sentence one word longer than the sentence before
Put the words of the answer in alphabetical order
Write everything in lower case
Start each line with a number
Repeat the first sentence at the end
Number the paragraphs
Keep the answer free of shorthand""".splitlines()


@pytest.mark.parametrize("instruction", LENGTH)
def test_a_bound_on_how_much_is_written_is_of_the_kind_length(instruction):
    assert kind(instruction) == "length"


@pytest.mark.parametrize("instruction", OTHER)
def test_a_constraint_that_brevity_does_not_obey_is_of_the_kind_other(instruction):
    assert kind(instruction) == "other"
