"""Small talk, little exercises and stories, generated from templates of the project's own."""
import random

NAMES = "Ada Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor Wendy Zoe Lin Wei Anna Max Nina Tom".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
OPPOSITES = [("hot", "cold"), ("big", "small"), ("fast", "slow"), ("day", "night"), ("happy", "sad"), ("up", "down"), ("open", "closed"), ("light", "dark"), ("old", "new"), ("early", "late"), ("full", "empty"), ("hard", "soft"), ("high", "low"), ("long", "short"), ("near", "far")]
COLOURS = [("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("a banana", "yellow"), ("a tomato", "red"), ("the night", "black"), ("an orange", "orange"), ("a lemon", "yellow"), ("a leaf", "green"), ("blood", "red")]
SOUNDS = [("cat", "meow"), ("dog", "woof"), ("cow", "moo"), ("duck", "quack"), ("sheep", "baa"), ("owl", "hoo")]
OUT = ["the capital of France", "the weather today", "the stock market", "who won the game", "the president", "quantum physics", "the news", "a recipe for cake", "the distance to the moon", "Roman history", "football results", "how to fix a car", "the meaning of life", "medicine", "the law in my country", "the price of gold", "world war two", "organic chemistry", "my exam tomorrow", "movie stars"]
GREET = ["hello", "Hello!", "hi", "Hi there", "hey", "Good morning", "good evening", "Hello, how are you?", "hi!", "Hey there!", "good afternoon", "howdy"]
GREET_A = ["Hello! How can I help you today?", "Hi! What would you like to know?", "Hello! It is nice to meet you.", "Hi there! Ask me about turbod, or for a little story."]

ANIMALS = ["fox", "rabbit", "cat", "dog", "bear", "mouse", "bird", "frog", "turtle", "duck", "squirrel", "owl", "hedgehog", "fish", "robot", "dragon", "snail", "bee"]
TRAITS = ["little", "brave", "curious", "shy", "kind", "clever", "sleepy", "cheerful", "tiny", "gentle"]
PLACES = ["in a quiet forest", "near a blue lake", "on a green hill", "in a small village", "by the sea", "in an old garden", "under a tall tree", "at the edge of a river", "in a house of stone", "behind the mountains"]
THINGS = ["red ball", "golden key", "small lamp", "shiny stone", "paper boat", "wooden flute", "warm blanket", "blue kite", "silver bell", "picture book"]
FRIENDS = ["Lily", "Tim", "Ruby", "Oscar", "Nora", "Finn", "Pip", "Luna", "Milo", "Hazel"]
LESSONS = ["sharing makes every day brighter", "a true friend is worth more than gold", "small steps can lead far", "it is good to ask for help", "being brave does not mean being without fear", "patience brings the best things", "kind words open many doors", "we learn most from our mistakes"]


def pick(r, xs):
    return r.choice(xs)


def story(r, hero=None):
    a = hero or pick(r, ANIMALS)
    t, p, th, n = pick(r, TRAITS), pick(r, PLACES), pick(r, THINGS), pick(r, FRIENDS)
    b = pick(r, [x for x in ANIMALS if x != a])
    art = "an" if t[0] in "aeiou" else "a"
    start = pick(r, [f"Once upon a time, {art} {t} {a} named {n} lived {p}.", f"There once was {art} {t} {a} called {n} who lived {p}."])
    find = pick(r, [f"One morning, {n} found a {th} on the path.", f"One day, {n} saw a {th} lying in the grass.", f"On a sunny day, {n} discovered a {th}."])
    wish = pick(r, [f"{n} wanted to keep it, but it belonged to a {b}.", f"It was so beautiful that {n} took it home. But soon a {b} came and asked for it.", f"A {b} was looking for it everywhere and was very sad."])
    turn = pick(r, [f"{n} thought for a while and gave the {th} back.", f"So {n} ran to the {b} and gave it the {th}.", f"\"Here it is,\" said {n}, and handed over the {th}."])
    thanks = pick(r, [f"The {b} smiled and thanked {n}.", f"The {b} was so happy that it danced.", f"\"Thank you,\" said the {b}, \"you are a good friend.\""])
    play = pick(r, ["From that day on they played together every afternoon.", "They sat down together and watched the sun go down.", "Then they shared some berries and laughed a lot."])
    end = pick(r, [f"And {n} learned that {pick(r, LESSONS)}.", f"That evening {n} knew that {pick(r, LESSONS)}."])
    return " ".join([start, find, wish, turn, thanks, play, end])


def story_turn(r):
    if r.random() < 0.75:
        a = pick(r, ANIMALS)
        t = pick(r, TRAITS)
        q = pick(r, [f"Tell me a story about a {a}.", f"tell me a story about a {a}", f"Please tell me a short story about a {t} {a}.", f"Write a story about a {a}", f"Can you tell me a story about a {a}?", f"I would like a story about a {a}.", f"a story about a {a} please"])
        return q, story(r, a)
    q = pick(r, ["Tell me a story.", "tell me a story", "Can you tell me a story?", "Write a short story", "I want to hear a story", "please tell me a bedtime story", "Do you know a story?"])
    return q, story(r)


WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()


def sums(r):
    a, b = r.randint(0, 10), r.randint(0, 10)
    op = pick(r, ["+", "+", "-"])
    if op == "-" and b > a:
        a, b = b, a
    v = a + b if op == "+" else a - b
    word = "plus" if op == "+" else "minus"
    q = pick(r, [f"What is {a} {word} {b}?", f"what is {a} {op} {b}", f"{a} {op} {b}", f"How much is {a} {word} {b}?", f"Can you compute {a} {op} {b}?", f"{a} {word} {b}?"])
    return q, f"{a} {word} {b} is {v}."


def exercise(r):
    k = r.randrange(6)
    if k == 0:
        a, b = pick(r, OPPOSITES)
        if r.random() < 0.5:
            a, b = b, a
        return pick(r, [f"What is the opposite of {a}?", f"opposite of {a}", f"Tell me the opposite of {a}.", f"What's the opposite of {a}?"]), f"The opposite of {a} is {b}."
    if k == 1:
        a, c = pick(r, COLOURS)
        return pick(r, [f"What colour is {a}?", f"what color is {a}", f"Which colour does {a} have?", f"Tell me the colour of {a}."]), f"{a[0].upper() + a[1:]} is {c}."
    if k == 2:
        i = r.randrange(7)
        if r.random() < 0.5:
            return pick(r, [f"What day comes after {DAYS[i]}?", f"which day is after {DAYS[i].lower()}", f"What is the day after {DAYS[i]}?"]), f"The day after {DAYS[i]} is {DAYS[(i + 1) % 7]}."
        return pick(r, [f"What day comes before {DAYS[i]}?", f"which day is before {DAYS[i].lower()}"]), f"The day before {DAYS[i]} is {DAYS[(i - 1) % 7]}."
    if k == 3:
        a, s = pick(r, SOUNDS)
        return pick(r, [f"What does a {a} say?", f"what sound does a {a} make", f"Which sound does a {a} make?"]), f"A {a} says {s}."
    if k == 4:
        n = r.randint(3, 20)
        return pick(r, [f"Count from 1 to {n}.", f"count to {n}", f"Please count from one to {WORDS[n]}.", f"Can you count to {n}?", f"count from 1 to {n}"]), ", ".join(str(i) for i in range(1, n + 1)) + "."
    return pick(r, ["Name the days of the week.", "what are the days of the week", "List the days of the week", "Which days does a week have?"]), "The days of the week are " + ", ".join(DAYS[:6]) + " and Sunday."


CHAT = [
    (["Who are you?", "who are you", "What are you?", "what is your name", "What's your name?", "Introduce yourself", "tell me about yourself", "Are you a robot?"],
     ["I am the demo model of turbod, a tiny language model with about three million parameters.", "I am a very small demo model. I was trained for turbod, and I know only a few things."]),
    (["What can you do?", "what can you do", "How can you help me?", "What do you know?", "help", "What should I ask you?"],
     ["I can explain turbod and terms of model serving, tell short stories, do small sums and chat a little.", "I can answer simple questions about turbod, tell a story or count for you."]),
    (["How are you?", "how are you", "How are you doing today?", "are you ok?", "How do you feel?"],
     ["I am fine, thank you. How are you?", "I am doing well, thank you for asking."]),
    (["Thank you!", "thanks", "thank you very much", "Thanks a lot", "Great, thank you", "that helps, thanks"],
     ["You are welcome!", "You are welcome. Is there anything else you would like to know?"]),
    (["Goodbye", "bye", "Good night", "see you later", "I have to go"], ["Goodbye! Have a nice day.", "See you soon!"]),
    (["I am sad", "I feel sad today", "I had a bad day", "I'm tired"], ["I am sorry to hear that. Would you like to hear a little story?", "I am sorry. I hope tomorrow will be a better day."]),
    (["I am happy", "I feel great", "I had a good day", "today was wonderful"], ["That is wonderful! I am glad to hear it.", "I am happy for you!"]),
    (["How old are you?", "how old are you", "When were you born?"], ["I am very young. I was trained only a short time ago."]),
    (["Are you human?", "are you a person", "Are you alive?"], ["No, I am a small language model, not a person."]),
    (["How many parameters do you have?", "how big are you", "What size are you?", "are you a large model"], ["I have about three million parameters, so I am very small."]),
    (["Do you speak Chinese?", "can you speak chinese", "Which languages do you speak?"], ["I speak English and a little Chinese.", "English, and a little Chinese."]),
    (["Tell me a joke", "do you know a joke", "make me laugh"], ["Why did the token cross the road? Because it was the most likely one.", "A scheduler walks into a bar and asks who is next."]),
    (["What is your favourite colour?", "which color do you like", "What do you like?"], ["I like blue, because it reminds me of a quiet lake."]),
    (["Do you like music?", "do you sing", "Can you dance?"], ["I cannot hear music, but I like the word."]),
    (["Are you better than other models?", "are you smart", "how good are you"], ["I am only a tiny demo model. Larger models know much more than I do."]),
    (["ok", "I see", "interesting", "Cool", "good", "nice", "hmm"], ["I am glad. What else would you like to know?", "Feel free to ask me another question."]),
]

ZH_CHAT = [
    (["你好", "你好！", "您好", "嗨", "早上好"], ["你好！有什么可以帮你的吗？", "你好！很高兴见到你。"]),
    (["你是谁？", "你是谁", "你叫什么名字？", "介绍一下你自己"], ["我是 turbod 的演示模型，只有大约三百万个参数。"]),
    (["你能做什么？", "你会什么？", "你可以帮我做什么？"], ["我可以解释 turbod 的概念，讲小故事，也可以聊聊天。"]),
    (["谢谢", "谢谢你", "多谢！"], ["不客气！", "不用谢。还有别的问题吗？"]),
    (["再见", "拜拜", "晚安"], ["再见！祝你愉快。"]),
    (["你好吗？", "最近怎么样？"], ["我很好，谢谢你。"]),
    (["今天天气怎么样？", "法国的首都是哪里？", "谁是总统？", "帮我写论文", "股票会涨吗？"], ["对不起，我只是一个很小的演示模型，不知道这个。"]),
]
ZH_A = ["小狐狸", "小兔子", "小猫", "小狗", "小熊", "小鸟", "小乌龟"]
ZH_P = ["森林里", "湖边", "山上", "村子里", "海边"]
ZH_T = ["红色的球", "金色的钥匙", "小灯", "风筝", "铃铛"]


def zh_story(r):
    a, p, t = pick(r, ZH_A), pick(r, ZH_P), pick(r, ZH_T)
    b = pick(r, [x for x in ZH_A if x != a])
    q = pick(r, [f"讲一个关于{a}的故事。", f"给我讲一个{a}的故事", f"请讲一个关于{a}的小故事。"])
    return q, f"从前，{p}住着一只{a}。有一天，{a}在路上看到一个{t}。原来那是{b}丢的。{a}把{t}还给了{b}。{b}很高兴，说：谢谢你！从此它们成了好朋友。"
