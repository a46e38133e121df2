//! A picture of a profile: the measured points, the fitted staircase, and how well they agree.

use std::fmt::Write;

use crate::protocol::ModelRole;
use crate::timing::cost_model::{Between, LatencyModel};
use crate::timing::fit::FitError;
use crate::timing::profile::Profile;
use crate::timing::{ProfileError, ProfilePoint};

/// Size of one panel's plotting area, in user units.
const PLOT: (f64, f64) = (430.0, 290.0);
/// Space around it for the axes and the title: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 46.0, 16.0, 48.0);
/// Height of the head line.
const HEAD: f64 = 40.0;
/// Colours of the contexts, shortest first; told apart also by people who can't see red.
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

/// Draws it: for each model, time over rows by context, and predicted over measured time.
///
/// # Errors
/// [`ProfileError::Terms`] when the profile's time model is invalid.
pub fn draw(profile: &Profile) -> Result<String, ProfileError> {
    let cost = profile.cost_model()?;
    let mut models = vec![(ModelRole::Target, &cost.target, profile.target_error)];
    models.extend(cost.draft.as_ref().map(|draft| (ModelRole::Draft, draft, profile.draft_error)));
    let (column, row) = (MARGIN.0 + PLOT.0 + MARGIN.2, MARGIN.1 + PLOT.1 + MARGIN.3);
    let (width, height) = (2.0 * column, HEAD + row * models.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    let head = format!(
        "{} profile, {}: {}",
        profile.origin, profile.fingerprint.backend, profile.fingerprint.device
    );
    text(&mut svg, (MARGIN.0, 26.0), "start", 15, &head);
    for (place, (role, model, error)) in models.into_iter().enumerate() {
        let points: Vec<&ProfilePoint> = profile.points.iter().filter(|point| point.model == role).collect();
        let top = HEAD + row * place as f64;
        staircase(&mut svg, (0.0, top), role, model, &points);
        agreement(&mut svg, (column, top), role, model, &points, error);
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn name(role: ModelRole) -> &'static str {
    match role {
        ModelRole::Target => "Target",
        ModelRole::Draft => "Draft",
    }
}

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    length: f64,
}

impl Axis {
    /// Holds all of `values`, with a little room; 1 to 10 when there are none.
    fn over(values: impl Iterator<Item = f64> + Clone, length: f64) -> Axis {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let (low, high) = if low <= high && low > 0.0 { (low / 1.12, high * 1.12) } else { (1.0, 10.0) };
        Axis { low, high, length }
    }

    fn at(&self, value: f64) -> f64 {
        (value / self.low).ln() / (self.high / self.low).ln() * self.length
    }

    /// Round values on the axis; at least two.
    fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = if self.high / self.low > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        let inside: Vec<f64> = all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        if inside.len() >= 2 { inside } else { vec![self.low, self.high] }
    }
}

/// A panel: axes drawn, ready for marks.
struct Panel {
    left: f64,
    bottom: f64,
    x: Axis,
    y: Axis,
}

impl Panel {
    fn new(svg: &mut String, at: (f64, f64), x: Axis, y: Axis, labels: [&str; 3]) -> Panel {
        let panel = Panel { left: at.0 + MARGIN.0, bottom: at.1 + MARGIN.1 + PLOT.1, x, y };
        let (left, bottom) = (panel.left, panel.bottom);
        let (right, top) = (left + PLOT.0, bottom - PLOT.1);
        for tick in panel.x.ticks() {
            let x = left + panel.x.at(tick);
            line(svg, (x, bottom), (x, top), "#ddd");
            text(svg, (x, bottom + 16.0), "middle", 11, &short(tick));
        }
        for tick in panel.y.ticks() {
            let y = bottom - panel.y.at(tick);
            line(svg, (left, y), (right, y), "#ddd");
            text(svg, (left - 6.0, y + 4.0), "end", 11, &short(tick));
        }
        line(svg, (left, bottom), (right, bottom), "#222");
        line(svg, (left, bottom), (left, top), "#222");
        let [title, x_label, y_label] = labels;
        text(svg, (left, top - 12.0), "start", 13, title);
        text(svg, (left + PLOT.0 / 2.0, bottom + 36.0), "middle", 12, x_label);
        let (x, y) = (left - 48.0, bottom - PLOT.1 / 2.0);
        let _ = writeln!(
            svg,
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>"
        );
        panel
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + self.x.at(x), self.bottom - self.y.at(y))
    }

    fn dot(&self, svg: &mut String, (x, y): (f64, f64), colour: &str) {
        let (x, y) = self.place(x, y);
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"{colour}\" fill-opacity=\"0.75\"/>"
        );
    }

    /// A line through the points; as stairs, each point's value holds from the one before it on.
    fn path(&self, svg: &mut String, points: &[(f64, f64)], stairs: bool, colour: &str) {
        let mut places = String::new();
        let mut before: Option<f64> = None;
        for &(x, y) in points {
            let (x, y) = self.place(x, y);
            if let Some(before) = before.filter(|_| stairs) {
                let _ = write!(places, "{before:.1},{y:.1} ");
            }
            let _ = write!(places, "{x:.1},{y:.1} ");
            before = Some(x);
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>",
            places.trim_end()
        );
    }
}

/// Time over rows of batches that prefill nothing, a colour for each context.
fn staircase(
    svg: &mut String,
    at: (f64, f64),
    role: ModelRole,
    model: &LatencyModel,
    points: &[&ProfilePoint],
) {
    let decoding: Vec<&ProfilePoint> = widest(points);
    let contexts = usual_contexts(&decoding);
    let shown: Vec<&ProfilePoint> =
        decoding.into_iter().filter(|point| contexts.contains(&point.context_tokens)).collect();
    let predicted = |point: &ProfilePoint| model.micros(&point.work()) / 1e3;
    let times = shown.iter().flat_map(|point| [point.micros / 1e3, predicted(point)]);
    let x = Axis::over(shown.iter().map(|point| f64::from(point.rows)), PLOT.0);
    let y = Axis::over(times, PLOT.1);
    let title = format!("{}: dots measured, lines fitted", name(role));
    let panel = Panel::new(svg, at, x, y, [&title, "rows in the batch", "milliseconds"]);
    let stairs = model.terms().between == Between::Pad;
    for (place, &context) in contexts.iter().enumerate() {
        let colour = COLOURS[place];
        let mut mine: Vec<&ProfilePoint> =
            shown.iter().copied().filter(|point| point.context_tokens == context).collect();
        mine.sort_by_key(|point| point.rows);
        let line: Vec<(f64, f64)> =
            mine.iter().map(|point| (f64::from(point.rows), predicted(point))).collect();
        panel.path(svg, &line, stairs, colour);
        for point in mine {
            panel.dot(svg, (f64::from(point.rows), point.micros / 1e3), colour);
        }
        let y = panel.bottom - PLOT.1 + 14.0 + 15.0 * place as f64;
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>",
            panel.left + 14.0,
            y - 4.0
        );
        text(svg, (panel.left + 24.0, y), "start", 11, &format!("context {context}"));
    }
}

/// The contexts that most row counts were measured at, ascending; at most one for each
/// colour. Longest contexts that only a few row counts share would be dots without a line.
fn usual_contexts(points: &[&ProfilePoint]) -> Vec<u32> {
    let count = |context: u32| points.iter().filter(|point| point.context_tokens == context).count();
    let mut contexts: Vec<u32> = points.iter().map(|point| point.context_tokens).collect();
    contexts.sort_unstable();
    contexts.dedup();
    let most = contexts.iter().map(|&context| count(context)).max().unwrap_or(0);
    contexts.retain(|&context| count(context) * 4 >= most);
    contexts.truncate(COLOURS.len());
    contexts
}

/// Of the points without prefill, those with the most sequences of their row count.
fn widest<'a>(points: &[&'a ProfilePoint]) -> Vec<&'a ProfilePoint> {
    let decoding: Vec<&ProfilePoint> =
        points.iter().copied().filter(|point| point.prefill_tokens == 0).collect();
    let most = |rows: u32| decoding.iter().filter(|one| one.rows == rows).map(|one| one.sequences).max();
    decoding.iter().copied().filter(|point| Some(point.sequences) == most(point.rows)).collect()
}

/// Predicted over measured time of all points.
fn agreement(
    svg: &mut String,
    at: (f64, f64),
    role: ModelRole,
    model: &LatencyModel,
    points: &[&ProfilePoint],
    error: Option<FitError>,
) {
    let pairs: Vec<(f64, f64)> =
        points.iter().map(|point| (point.micros / 1e3, model.micros(&point.work()) / 1e3)).collect();
    let both = pairs.iter().flat_map(|&(measured, predicted)| [measured, predicted]);
    let (x, y) = (Axis::over(both.clone(), PLOT.0), Axis::over(both, PLOT.1));
    let ends = [(x.low, x.low), (x.high, x.high)];
    let error = error.map_or_else(String::new, |error| {
        format!("; held out: mean error {:.1} %, p99 {:.1} %", error.mape * 100.0, error.p99 * 100.0)
    });
    let title = format!("{}: {} shapes{error}", name(role), pairs.len());
    let panel = Panel::new(svg, at, x, y, [&title, "measured milliseconds", "predicted milliseconds"]);
    panel.path(svg, &ends, false, "#888");
    for (point, &pair) in points.iter().zip(&pairs) {
        panel.dot(svg, pair, if point.prefill_tokens > 0 { COLOURS[5] } else { COLOURS[0] });
    }
    for (place, (label, colour)) in
        [("decode, verify", COLOURS[0]), ("with prefill", COLOURS[5])].iter().enumerate()
    {
        let y = panel.bottom - PLOT.1 + 14.0 + 15.0 * place as f64;
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>",
            panel.left + 14.0,
            y - 4.0
        );
        text(svg, (panel.left + 24.0, y), "start", 11, label);
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, size: u32, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{words}</text>",
        at.0, at.1
    );
}

/// A tick's value in few digits.
fn short(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}
