"""Plain text that the quickstart's tokenizer is trained on beside the generated problems.

Only what makes other people's word problems reasonably short in tokens: frequent words, everyday sentences with
numbers, and the notation of school mathematics. The tokenizer's ids depend on this text: changing a character makes
another tokenizer, so another pair.
"""

FREQUENT_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one
you were her all she there would their we him been has when who will more no if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me even
most made after also did many before must through back years where much your way well down should because each just
those people how too little state good very make world still own see men work long get here between both life being
under never day same another know while last might us great old year off come since against go came right used take
three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand half third quarter
twice double triple percent total sum difference product number numbers amount average equal less greater least most
every each per week weeks month months hour hours minute minutes second seconds days night morning afternoon evening
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January March April June July August October December
money dollar dollars cent cents cost costs price pay pays paid buy buys bought sell sells sold spend spends spent earn
earns earned save saves saved give gives gave given away left remaining rest needs need want wants take takes took
school class student students teacher children kids friend friends brother sister mother father family boys girls boy
house room box boxes bag bags bottle bottles car cars bus train road mile miles meter meters feet foot inch inches
water food bread cake cookies pizza candy fruit apple apples orange oranges banana milk egg eggs fish dog dogs cat cats
book books page pages read reads write letter letters game games play plays team point points ball win won plant plants
tree trees garden flower flowers farm field red blue green yellow white black large small big short tall high weight
pound pounds gram grams liter liters gallon speed distance rate length width area side square circle triangle angle
let find value such that integer positive real function if then where given suppose prove answer question problem
solve solution equation expression sequence digit factor prime remainder divided multiplied times plus minus equals
""".split()

SENTENCES = """
How many does he have in total? How much money does she have left? How many more does she need than he does?
How long will it take them to finish? What is the total number of pages that he reads in a week?
She has twice as many as her brother. There are three times as many students in the second class.
He spends half of his money on food and the rest on books. If each box holds 12 eggs, how many boxes are needed?
A store sells pencils for $2 each. They bought 5 bottles of water at $1.50 per bottle and paid with a $20 bill.
She works 8 hours a day, 5 days a week, and earns $15 an hour. He drove for 3 hours at 60 miles per hour.
20% of the children are girls. One third of the apples are red, and the others are green.
After that, there were 36 left. So the answer is 4 + 5 = 9. Then 9 * 3 = 27, and 27 / 3 = 9, which is 9 - 0 = 9.
Let x and y be positive integers such that x + y = 10 and x^2 + y^2 = 58. Find the value of xy.
What is the smallest positive integer n that is divisible by both 6 and 15? Find the remainder when it is divided by 7.
The area of the triangle is $\\frac{1}{2}bh$, the sum is $\\sum_{k=1}^{n} k$, and $\\sqrt{2} \\cdot \\sqrt{8} = 4$.
Solve the following math problem step by step. Please put your final answer within \\boxed{}.
The last line of your response should be of the form Answer: $Answer (without quotes) where $Answer is the answer.
The first number is the larger of the two. Therefore, it isn't more than 100; that's all we don't know (yet).
""".strip().splitlines()


def lines() -> list[str]:
    """The text; frequent words follow a space, as they mostly do."""
    return [*SENTENCES, " " + " ".join(FREQUENT_WORDS)]
