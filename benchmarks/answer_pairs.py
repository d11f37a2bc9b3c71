r"""Pairs of (reference, answer) written by hand: the same value in another form, and another value in a similar form.

Each line of EQUAL is one fact that a person checks at sight; each of UNEQUAL differs in value, kind or unit, and was
chosen because a checker that reads loosely takes it for equal.
"""

EQUAL = [line.split(" ~ ") for line in r"""
0.5 ~ \frac12
0.5 ~ 50\%
50\% ~ 0.5
50\% ~ 50
50\% ~ \frac{1}{2}
\frac{1}{2} ~ 0.50
\frac{1}{2} ~ 1/2
\frac{1}{2} ~ \frac{2}{4}
\frac43 ~ \dfrac{4}{3}
\frac43 ~ 1\frac13
\frac43 ~ 1 1/3
-\frac{35}{9} ~ \frac{-35}{9}
-\frac{35}{9} ~ \frac{35}{-9}
1\frac{4}{5} ~ 1.8
137 \frac{1}{2} ~ \frac{275}{2}
\frac9{19} ~ \frac{9}{19}
\frac 59 ~ 5/9
.0000672 ~ 6.72 \times 10^{-5}
1,234 ~ 1234
58,500 ~ 58500
58500 ~ 58\,500
10,\!080 ~ 10{,}080
11,\! 111,\! 111,\! 100 ~ 11,111,111,100
11,\! 111,\! 111,\! 100 ~ 11111111100
\$32,\!348 ~ 32348
\$18.90 ~ \$18.9
\$36 ~ 36 dollars
5.4 \text{ cents} ~ 5.4
90^\circ ~ 90
90^\circ ~ 90 degrees
\frac{270}7\text{ degrees} ~ \frac{270}{7}^\circ
864 \mbox{ inches}^2 ~ 864
864 \mbox{ inches}^2 ~ 864 \text{ in}^2
15\mbox{ cm}^2 ~ 15 \text{ square centimeters}
2^{10} ~ 1024
2^{-3} ~ \frac18
5! ~ 120
\binom{5}{2} ~ 10
3+4 ~ 7
2 \cdot 3 ~ 6
3x+1 ~ 1+3x
p - q ~ -q + p
2k+2 ~ 2(k+1)
(a+5)(b+2) ~ (b+2)(a+5)
(a+5)(b+2) ~ ab + 2a + 5b + 10
x^3+3x-6 ~ x(x^2+3)-6
6r^2-4r-24 ~ -24 - 4r + 6r^2
\frac{11+9a}{20} ~ \frac{9a+11}{20}
\frac{11+9a}{20} ~ 0.45a + 0.55
x^8 + x^7 + x^6 + x^5 + x^4 + x^3 + x^2 + x + 1 ~ \frac{x^9-1}{x-1}
8n^2 + 4n + 1 ~ (2n+1)^2 + 4n^2
\cot x ~ \frac{\cos x}{\sin x}
\cot x ~ \frac{1}{\tan x}
5r^5 ~ 5 \cdot r^5
3R^2 ~ 3 R \cdot R
11\sqrt2 ~ 11\sqrt{2}
11\sqrt2 ~ \sqrt{242}
2\sqrt{113} ~ \sqrt{452}
2\sqrt{5} ~ 2√5
\frac{\sqrt{3}}{3} ~ \frac{1}{\sqrt{3}}
\frac{\sqrt{3}}{3} ~ \sqrt{\frac13}
\frac{3\sqrt{3}}{4} ~ \frac34 \sqrt3
1+2\sqrt{3} ~ 2\sqrt{3}+1
11 \sqrt{5} + 11 ~ 11(1+\sqrt5)
-\frac{\pi}{6} ~ -\pi/6
18+2\pi ~ 2(9+\pi)
12\pi ~ 12π
288 \pi ~ 288pi
\frac{20000}{\pi} ~ 20000/\pi
6 - 5i ~ -5i + 6
6+9i ~ 3(2+3i)
1 \pm \sqrt{19} ~ 1+\sqrt{19}, 1-\sqrt{19}
3 \pm 2 \sqrt{2} ~ 3 \pm \sqrt{8}
\{1\pm\sqrt{5},-2\} ~ -2, 1-\sqrt5, 1+\sqrt5
1,-2 ~ -2, 1
1,-2 ~ x = -2 \text{ or } x = 1
1,-2 ~ n = 1, -2
3, 5, 7 ~ 7, 5, 3
3, 5, 7 ~ \{5, 3, 7\}
3, 5, 7 ~ 3, 5 and 7
(6,31,-1) ~ (6, 31, -1)
(6,31,-1) ~ 6, 31, -1
\left( 3, \frac{\pi}{2} \right) ~ (3, \pi/2)
\left( \frac{3}{2}, -13 \right) ~ (1.5, -13)
(-2,1) ~ \left(-2, \frac{2}{2}\right)
(3,4] ~ \left(3, 4\right]
(3,4] ~ 3 < x \le 4
(2,\infty) ~ x > 2
(-\infty, 0] ~ x \leq 0
(5,\infty) ~ (5, +\infty)
(0,9) \cup (9,36) ~ (9,36) \cup (0,9)
(-\infty, 2) \cup (3, \infty) ~ (-\infty,2)\cup(3,+\infty)
\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right] ~ [\pi^2/8, 5\pi^2/4]
\left(\frac{3}{5},\frac{8}{3}\right] ~ (0.6, 8/3]
x \in [-2,7] ~ [-2,7]
x \in [-2,7] ~ -2 \le x \le 7
y = 2x + 3 ~ y = 3 + 2x
y = 2x + 3 ~ 2x - y + 3 = 0
y = -2x ~ 2x + y = 0
5x - 7y + 11z + 4 = 0 ~ 10x - 14y + 22z + 8 = 0
x=5 ~ 5
5 ~ x = 5
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} ~ \begin{pmatrix} -\frac13 \\ \frac23 \\ \frac53 \end{pmatrix}
\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} ~ \begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} ~ \begin{pmatrix}-1&0\\0&-1\end{pmatrix}
\text{(C)} ~ C
\text{(C)} ~ (C)
\text{(E)} ~ \text{E}
\text{Evelyn} ~ Evelyn
\text{east} ~ \text{East}
\text{even} ~ Even
52_8 ~ 52_{8}
4210_{5} ~ 4210_5
""".strip().splitlines()]

UNEQUAL = [line.split(" ~ ") for line in r"""
0.5 ~ 5\%
50\% ~ 0.05
50 ~ 0.5
\frac13 ~ 0.33
\frac13 ~ 0.333333
\frac23 ~ 0.6666667
\pi ~ 3.14
\pi ~ 3.141593
\sqrt{2} ~ 1.414214
0.0000001 ~ 0.0000002
0.0000004 ~ 0
\frac{1}{10^{20}} ~ \frac{2}{10^{20}}
10^{-20} ~ 2 \cdot 10^{-20}
10^{20} ~ 10^{20}+1
7 ~ 3 4
5 ~ 2(3)
12 ~ 3 4
\frac12 ~ 2
\frac12 ~ -\frac12
1\frac{4}{5} ~ \frac{4}{5}
137 \frac{1}{2} ~ 137
2\frac{1}{2} ~ 1
5 ~ 5 \text{ million}
5 ~ 5 million
5 ~ 5 tenths
5 ~ 5x
3 ~ 3t
2 ~ 2d
5 ~ 5r
5 ~ 5 r
8 ~ 8 z
5 \text{ cm} ~ 5 \text{ m}
15\mbox{ cm}^2 ~ 15\mbox{ cm}^3
15\mbox{ cm}^2 ~ 15 \text{ square inches}
5.4 \text{ cents} ~ \$5.4
\$36 ~ 36 cents
90^\circ ~ 90 \text{ radians}
\sin 30^\circ ~ \sin 30
52_8 ~ 52_9
4210_{5} ~ 4210_7
40_9 ~ 36_9
12:30 ~ \frac{2}{5}
3R^2 ~ 3r^2
X ~ x
a^T ~ a
5r^5 ~ 5r^4
x^{2}y ~ x^{2y}
\frac{1}{2}x ~ \frac{1}{2x}
x^2-1 ~ x^2+1
2k+2 ~ 2k+1
(a+5)(b+2) ~ (a+2)(b+5)
\cot x ~ \tan x
\log 2 ~ \ln 2
\sqrt{x^2} ~ x
|x| ~ x
3\sqrt{13} ~ 13\sqrt{3}
\sqrt[3]{2} ~ \sqrt{2}
11\sqrt2 ~ \sqrt{11}2
6 - 5i ~ 5 - 6i
6 - 5i ~ 6 + 5i
6 - 5i ~ 6 - 5
1 \pm \sqrt{19} ~ 1 + \sqrt{19}
1 \pm \sqrt{19} ~ -1 \pm \sqrt{19}
\{1\pm\sqrt{5},-2\} ~ 1\pm\sqrt{5}, 2
1,-2 ~ 1
1,-2 ~ 1, 2
1,-2 ~ -1, 2
1,-2 ~ (-2, 1)
1,2 ~ (2,1)
1,2 ~ 1,1,2
1,1,2 ~ 1,2
3, 5, 7 ~ 3, 5
3, 5, 7 ~ 3, 5, 7, 9
3, 5, 7 ~ 357
2,3 ~ x = 3, y = 2
x=2, y=3 ~ x=3, y=2
5 ~ 2x = 5
5 ~ x^2 = 5
5 ~ x + 1 = 5
5 ~ 4 = 5
5 ~ x = 4 = 5
5 ~ 5!
5 ~ 5 = 6
5 ~ \{5\}
5 ~ 5, 6
5 ~ 6, 5
5 ~ 5 \text{ or } 6
5 ~ 5 \pm 1
5 ~ [5, 6]
5 ~ \approx 5
5 ~ > 5
5 ~ x > 5
5 ~ x \neq 5
(6,31,-1) ~ (31,6,-1)
(6,31,-1) ~ 31, 6, -1
(6,31,-1) ~ \{6,31,-1\}
(1,2) ~ \{1,2\}
(1,2) ~ 2,1
(1,2) ~ [1,2]
(1,2) ~ (1,2,2)
(1,1,2) ~ (1,2)
(15,-29) ~ (-29,15)
(15,-29) ~ \begin{pmatrix} 15 \\ -29 \end{pmatrix}
(2,12) \cup (12,102) ~ (2,102)
(2,12) \cup (12,102) ~ (2,12] \cup (12,102)
(0,9) \cup (9,36) ~ (0,9) \cap (9,36)
(3,4] ~ (3,4)
(3,4] ~ [3,4]
(3,4] ~ 3 < x < 4
(2,\infty) ~ [2,\infty)
(2,\infty) ~ (-\infty,2)
(2,\infty) ~ x \ge 2
(-\infty, 0] ~ (-\infty, 0)
(-\sqrt{3}, \sqrt{3}) ~ (\sqrt{3}, -\sqrt{3})
x \in [-2,7] ~ y \in [-2,7]
x \in [-2,7] ~ x \in (-2,7)
x^2+1=0 ~ x^2+2=0
y = 2x + 3 ~ x = 2y + 3
y = 2x + 3 ~ y = 2x
y = -2x ~ y = 2x
y = 2x ~ x = 2x
5x - 7y + 11z + 4 = 0 ~ 5x - 7y + 11z - 4 = 0
5x - 7y + 11z + 4 = 0 ~ 5x - 7y + 11z + 4
x > 2 ~ x < 2
x > 2 ~ x \ge 2
x > 2 ~ -x > 2
x > 2 ~ y > 2
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ~ \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} ~ \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} ~ \begin{pmatrix} 1 \\ 2 \\ 2 \end{pmatrix}
\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} ~ \begin{vmatrix} 1 & 0 \\ 0 & 1 \end{vmatrix}
\text{(C)} ~ \text{(D)}
\text{(C)} ~ \text{(C) or (D)}
\text{even} ~ \text{odd}
\text{even} ~ neve
even ~ neve
east ~ seat
\text{east} ~ \text{seat}
\text{east} ~ \text{west}
\text{Evelyn} ~ \text{Angela}
no ~ on
\text{ellipse} ~ \text{circle}
\frac{1}{2} ~ \frac{1}{2} @ 7
8 \pi ~ 8
8 \pi ~ 8 \pi r
8 \pi ~ \pi
2^{10} ~ 2^{1}0
x^{10} ~ x^{1}0
120 ~ 5!!
\binom{5}{2} ~ \frac{5}{2}
0 ~ \text{none}
""".strip().splitlines()]
