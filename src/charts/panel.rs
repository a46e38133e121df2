//! What a panel shows, independent of how it is drawn.

/// A point in data coordinates; both are positive, because the axes are logarithmic.
pub(super) type Point = (f64, f64);

/// One diagram with logarithmic axes.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    /// Heading.
    pub(super) title: String,
    /// Label of the horizontal axis, with its unit.
    pub(super) x_label: &'static str,
    /// Label of the vertical axis, with its unit.
    pub(super) y_label: &'static str,
    /// Drawn in order; later ones cover earlier ones.
    pub(super) series: Vec<Series>,
}

/// Marks of one colour.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Entry in the legend; none where it would be empty.
    pub(super) name: String,
    /// Red, green, blue.
    pub(super) colour: [u8; 3],
    /// A polyline through these points.
    pub(super) line: Vec<Point>,
    /// A dot at each of these.
    pub(super) dots: Vec<Point>,
}

impl Panel {
    /// The axis that holds every point's horizontal coordinate.
    pub(super) fn x_axis(&self) -> Axis {
        Axis::over(self.points().map(|point| point.0))
    }

    /// The axis that holds every point's vertical coordinate.
    pub(super) fn y_axis(&self) -> Axis {
        Axis::over(self.points().map(|point| point.1))
    }

    fn points(&self) -> impl Iterator<Item = Point> {
        self.series.iter().flat_map(|series| series.line.iter().chain(&series.dots).copied())
    }
}

/// Turns points into a staircase on which each value holds from the point before it on, as a
/// batch is padded to the next captured size.
pub(super) fn staircase(points: &[Point]) -> Vec<Point> {
    let corners = points.windows(2).flat_map(|pair| [(pair[0].0, pair[1].1), pair[1]]);
    points.first().copied().into_iter().chain(corners).collect()
}

/// Range of a logarithmic axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    /// Lowest value shown, above 0.
    pub(super) low: f64,
    /// Highest value shown, above `low`.
    pub(super) high: f64,
}

impl Axis {
    /// Holds all of `values` with a margin; 1 to 10 when there are none.
    fn over(values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) =
            values.fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        let valid = low <= high && low > 0.0 && high.is_finite();
        let (low, high) = if valid { (low / 1.12, high * 1.12) } else { (1.0, 10.0) };
        Axis { low, high }
    }

    /// Round values on the axis; at least two.
    pub(super) fn ticks(self) -> Vec<f64> {
        let steps: &[f64] = if self.high / self.low > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        let inside: Vec<f64> = all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        if inside.len() >= 2 { inside } else { vec![self.low, self.high] }
    }
}

/// A tick's value in few digits.
pub(super) fn short(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}
