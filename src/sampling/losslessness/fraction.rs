//! Exact rational arithmetic on 128-bit integers.

use std::iter::Sum;
use std::ops::{Add, Div, Mul, Sub};

/// A fraction in lowest terms with a positive denominator. Overflow panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    numerator: i128,
    denominator: i128,
}

/// `numerator / denominator`.
pub fn fraction(numerator: i128, denominator: i128) -> Fraction {
    let (mut a, mut b) = (numerator.abs(), denominator.abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let divisor = a * denominator.signum();
    Fraction { numerator: numerator / divisor, denominator: denominator / divisor }
}

impl Fraction {
    pub const ZERO: Fraction = Fraction { numerator: 0, denominator: 1 };
    pub const ONE: Fraction = Fraction { numerator: 1, denominator: 1 };

    fn inverse(self) -> Fraction {
        fraction(self.denominator, self.numerator)
    }

    /// Returns the nearest double.
    pub fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

fn times(a: i128, b: i128) -> i128 {
    a.checked_mul(b).expect("the fraction fits 128 bits")
}

impl Add for Fraction {
    type Output = Fraction;
    fn add(self, other: Fraction) -> Fraction {
        let common = fraction(self.denominator, other.denominator);
        let (left, right) = (common.denominator, common.numerator);
        let sum = times(self.numerator, left).checked_add(times(other.numerator, right));
        fraction(sum.expect("the fraction fits 128 bits"), times(self.denominator, left))
    }
}

impl Sub for Fraction {
    type Output = Fraction;
    fn sub(self, other: Fraction) -> Fraction {
        self + Fraction { numerator: -other.numerator, ..other }
    }
}

impl Mul for Fraction {
    type Output = Fraction;
    fn mul(self, other: Fraction) -> Fraction {
        let (a, b) =
            (fraction(self.numerator, other.denominator), fraction(other.numerator, self.denominator));
        fraction(times(a.numerator, b.numerator), times(a.denominator, b.denominator))
    }
}

impl Div for Fraction {
    type Output = Fraction;
    fn div(self, other: Fraction) -> Fraction {
        self.mul(other.inverse())
    }
}

impl PartialOrd for Fraction {
    fn partial_cmp(&self, other: &Fraction) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Fraction {
    fn cmp(&self, other: &Fraction) -> std::cmp::Ordering {
        (*self - *other).numerator.cmp(&0)
    }
}

impl Sum for Fraction {
    fn sum<I: Iterator<Item = Fraction>>(terms: I) -> Fraction {
        terms.fold(Fraction::ZERO, Add::add)
    }
}

#[test]
fn fractions_are_exact_and_in_lowest_terms() {
    let (half, third) = (fraction(2, 4), fraction(-1, -3));
    assert_eq!(half + third, fraction(5, 6));
    assert_eq!(half - third, fraction(1, 6));
    assert_eq!(half * third, fraction(1, 6));
    assert_eq!(half / third, fraction(3, 2));
    assert!(third < half && fraction(-1, 2) < third);
    assert_eq!([half, third, fraction(1, 6)].into_iter().sum::<Fraction>(), Fraction::ONE);
}
