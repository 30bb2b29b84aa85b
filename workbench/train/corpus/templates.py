"""Templates of our own for `sentences.py`: everyday talk, assistants, numbers, dates, space."""

import random
import re

SLOTS = {
    "name": "Alice Amir Anna Ben Carlos Chloe Clara Daniel Diana Edward Elena Emma Ethan Farah "
    "Felix Fiona George Grace Hannah Harry Helen Hiro Ines Isaac Ivan Jack Jane Jasmine Joel Julia Karim "
    "Kate Kenji Laura Leo Lily Lucas Maria Mark Maya Megan Mia Nadia Nathan Nina Noah Nora Olga Oliver "
    "Oscar Paul Peter Priya Rachel Raj Rosa Ruth Sam Sarah Sofia Stephen Susan Theo Thomas Tina Tom Vera "
    "Victor Wendy Yuki Zoe",
    "place": "Amsterdam Athens Bangkok Berlin Boston Brussels Cairo Chicago Copenhagen Delhi "
    "Denver Dublin Edinburgh Florence Geneva Hanoi Helsinki Houston Istanbul Jakarta Kyoto Lagos Lima "
    "Lisbon London Madrid Manila Melbourne Miami Milan Montreal Moscow Munich Nairobi Oslo Paris Prague "
    "Rome Seattle Seoul Shanghai Singapore Stockholm Sydney Tokyo Toronto Vancouver Vienna Warsaw Zurich",
    "country": "Argentina Australia Austria Belgium Brazil Canada Chile China Colombia Cuba "
    "Denmark Egypt England Finland France Germany Greece Hungary Iceland India Indonesia Ireland Italy "
    "Japan Kenya Malaysia Mexico Morocco Nepal Norway Peru Poland Portugal Scotland Spain Sweden "
    "Switzerland Thailand Turkey Ukraine Vietnam",
    "language": "Arabic Chinese Danish Dutch English French German Greek Hindi Italian "
    "Japanese Korean Latin Polish Portuguese Russian Spanish Swahili Swedish Turkish",
    "month": "January February March April May June July August September October November December",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "planet": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune Pluto",
    "moon": "Europa Titan Ganymede Callisto Io Triton Phobos Enceladus",
    "part": "morning afternoon evening night",
    "color": "red blue green yellow orange purple pink brown black white gray golden silver violet crimson",
    "weather": "sunny cloudy rainy windy foggy stormy snowy chilly humid freezing mild warm",
    "adj": "ancient awful beautiful brave bright broken careful cheap clever comfortable curious "
    "dangerous dirty elegant empty enormous expensive famous fragile friendly funny gentle heavy honest "
    "huge humble lazy lonely modern mysterious narrow noisy ordinary patient peculiar pleasant polite "
    "precious proud quiet rough serious sharp shiny simple slippery smooth strange stubborn terrible tiny "
    "unusual valuable weird wonderful young",
    "adverb": "badly carefully cheerfully clearly eagerly easily finally gently gladly happily "
    "honestly loudly neatly nervously patiently perfectly politely quickly quietly rarely rudely sadly "
    "secretly seldom silently slowly suddenly thoughtfully usually warmly wisely",
    "past": "admired borrowed bought broke brought carried chose cleaned described designed "
    "discovered drew dropped examined exchanged fixed forgot found hid ignored imagined kept lost "
    "measured mentioned moved noticed offered ordered painted photographed pushed recognized refused "
    "returned sold stole threw touched trusted wanted watched",
    "kin": "mother father sister brother aunt uncle cousin daughter son niece nephew grandmother "
    "grandfather neighbor",
    "science": "algebra archaeology astronomy biology chemistry economics geography geology "
    "geometry grammar history linguistics mathematics medicine music philosophy physics poetry psychology "
    "statistics theology zoology",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh "
    "twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth "
    "twenty-first twenty-second twenty-third twenty-fourth twenty-fifth twenty-sixth twenty-seventh "
    "twenty-eighth twenty-ninth thirtieth",
    "ones": "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
}
PHRASES = """
Hello, I am an AI voice assistant.
Hello there, and welcome back!
Good morning, everyone, and thank you for coming.
Good night, and sleep well.
It is a pleasure to meet you.
It was lovely talking to you.
Have a nice weekend, everybody.
What time is it, please?
What would you like to drink?
Could you say that again, a little more slowly?
I did not understand the last word.
I am so sorry for being late.
Never mind, it happens to everyone.
That sounds like a wonderful idea!
I could not agree with you more.
To be honest, I would rather stay at home.
Let me think about it and call you back.
Please wait a moment while I look that up.
I am listening, so go ahead.
I was made to answer questions and to read texts aloud.
My voice was made by a computer, but I hope you like it.
You can ask me about the weather, the news, or anything else.
I cannot see you, but I can hear every word you say.
Would you like to hear another story?
Please speak after the tone.
Your call is important to us.
The quick brown fox jumps over the lazy dog.
How much wood would a woodchuck chuck?
She sells sea shells by the sea shore.
Mind the gap between the train and the platform.
Once upon a time there was a king who could not sleep.
We choose to go to the moon and back again.
Houston, we have a small problem.
The rocket rises slowly and then faster and faster.
Three, two, one, and we have liftoff!
The earth is the third planet from the sun.
The rings of Saturn are made of ice and rock.
Light from the sun reaches us after eight minutes.
There is no sound in the emptiness of space.
Neptune is so far away that its year lasts longer than a human life.
A black hole lets nothing escape, not even light.
The astronauts floated through the cabin and laughed.
The space station circles the earth sixteen times a day.
Mercury has no moons, and neither has Venus.
The red planet has the tallest volcano we know.
A comet is a ball of ice and dust with a glowing tail.
Our galaxy holds more than a hundred billion stars.
"""
TEMPLATES = """
Hello, I am {a_adj} assistant, and my name is {name}.
Hello, {name}, this is your AI voice assistant speaking.
I am an AI assistant, and I can help you with {science}.
As a voice assistant, I can speak {language} and a little {language}.
Good {part}, {name}. How can I help you today?
Good {part}, and welcome to {place}!
Would you like me to read the message from {name}?
I am sorry, {name}, but I do not know the answer to that question.
I have set an alarm for {clock} in the morning.
Your next meeting is on {day} at {clock}.
Here is a short story about {a_animal} and {a_person}.
Shall I add {food} to your shopping list?
Shall I play some music, or would you rather hear the news from {country}?
I found {number} results about {science} and {science}.
Please tell me more about the {thing}, {name}.
What is the {language} word for {thing}?
How do you spell the word {thing}?
How far is it from {place} to {place}?
It is {number} kilometers from {place} to {place}.
Nice to meet you, {name}. Where in {country} do you come from?
Thank you very much for the {adj} {thing}.
Excuse me, where can I buy {a_thing} in {place}?
Happy birthday, {name}! Are you really {count} years old?
See you on {day}, {name}, and give my love to your {kin}.
How was your trip to {country}, {name}?
Do you know why {planet} looks so {adj} tonight?
The spacecraft will reach {planet} in {month}.
The rocket to {planet} carries {count} satellites and {a_adj} {thing}.
The astronauts left {planet} and traveled toward {moon}.
From the surface of {moon}, {planet} looks like {a_color} {thing}.
A day on {planet} is not as long as a day on {planet}.
The distance between {planet} and {planet} is {number} million kilometers.
The telescope photographed {planet} on the {ordinal} of {month}.
{name} dreams of flying to {planet} with {a_animal}.
Have astronomers found water on {moon} or on {planet}?
It will be {weather} in {place} on {day}, and {weather} on {day}.
The temperature in {place} fell to {count} degrees in {month}.
{name} was born in {country} on the {ordinal} of {month}, {year}.
In {year}, the {person} moved from {place} to {place}.
The {thing} was invented in {year}, or perhaps a little later.
The number of the room is {number}, not {number}.
{count} plus {count} is more than {count}.
My telephone number ends with {digit}, {digit}, {digit}, {digit}.
The flight to {place} leaves at {clock} from gate {count}.
We need {count} boxes of {food} before {day}.
{name} paid {number} dollars for {a_adj} {thing}.
Over {number} people visited {place} last {month}.
Turn to page {number} and read the {ordinal} line aloud.
The {animal} weighs {count} kilograms and eats {food}.
Every {day}, the {person} {past} {a_thing} in {place}.
Last {month}, my {kin} {adverb} {past} the {color} {thing}.
The {adj} {person} {adverb} {past} {a_thing}.
{name} and {name} {past} {a_adj} {thing} near the {thing}.
Why has the {person} {adverb} left the {thing} in the {thing}?
Did {name} say that the {animal} was {adj}?
My {kin} cooked {food} with {food} for the {person}.
Do not touch the {thing}, {name}, because it is {adj}!
What {a_adj} {animal} that is!
There is {a_color} {animal} under the {plant}.
The {plant} behind the {thing} turns {color} in {month}.
{a_animal} is neither {a_animal} nor {a_animal}.
The {person} felt a sudden pain in the {body}.
Could you bring me {a_thing}, {a_thing} and some {food}, please?
{name} studies {science} in {country} and teaches {language} on {day}.
If it is {weather} tomorrow, we will take the {thing} to {place}.
I have never seen such {a_adj} {person} in all my life.
The {person} in the {color} coat asked the {person} for {a_thing}.
Which is more {adj}, the {thing} or the {thing}?
{name} whispered that the {thing} belonged to {a_person}.
When the {thing} broke, the {person} was {adverb} eating {food}.
"""


def number_words(number: int) -> str:
    """Write a whole number below a million in words."""
    ones, tens = SLOTS["ones"].split(), SLOTS["tens"].split()
    if number < 20:
        return ones[number]
    if number < 100:
        return tens[number // 10 - 2] + ("-" + ones[number % 10] if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    joint = "" if not rest else " and " if rest < 100 else " "
    return f"{number_words(number // size)} {name}{joint}{number_words(rest) if rest else ''}"


def fill(template: str, nouns: dict[str, list[str]], rng: random.Random) -> str:
    """Put words into the slots of a template.

    Parameters
    ----------
    template : str
        `{thing}` is a word, `{a_thing}` one with its article.
    nouns : dict
        Words of the slots that `SLOTS` does not have.
    rng : random.Random

    Returns
    -------
    str
        A sentence in which no slot got the same word twice.
    """
    used = set()

    def word(match: re.Match) -> str:
        slot = match[1].removeprefix("a_")
        for _ in range(20):
            found = _word(slot, nouns, rng)
            if found not in used:
                break
        used.add(found)
        return f"{article(found)} {found}" if match[1].startswith("a_") else found

    text = re.sub(r"\{(\w+)\}", word, template)
    return text[0].upper() + text[1:]


def article(word: str) -> str:
    """Return the indefinite article for a word."""
    if re.match(r"(?:uni(?!n|m)|us[aeiu]|ut[ei]|eu|ewe|one\b|once|ur[aeiou]|ubiq|ufo)", word.lower()):
        return "a"
    return "an" if re.match(r"(?:[aeiou]|hour|honest|honor|heir)", word.lower()) else "a"


def _word(slot: str, nouns: dict[str, list[str]], rng: random.Random) -> str:
    if slot == "count":
        return number_words(rng.randint(2, 99))
    if slot == "digit":
        return number_words(rng.randint(0, 9))
    if slot == "number":
        return number_words(int(10 ** rng.uniform(2, 4.5)) // (step := rng.choice([1, 10, 100])) * step)
    if slot == "year":
        rest = rng.randint(10, 99)
        return (
            f"{rng.choice(['sixteen', 'seventeen', 'eighteen', 'nineteen', 'twenty'])} {number_words(rest)}"
        )
    if slot == "clock":
        hour, minute = (
            number_words(rng.randint(1, 12)),
            rng.choice(["fifteen", "thirty", "forty", "fifty-five"]),
        )
        return rng.choice(
            [f"half past {hour}", f"a quarter to {hour}", f"{hour} o'clock", f"{hour} {minute}"]
        )
    return rng.choice(SLOTS[slot].split() if slot in SLOTS else nouns[slot])
