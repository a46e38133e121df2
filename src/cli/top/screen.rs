//! The dashboard as a picture: a pure function of the statistics and the size.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{LineGauge, RenderDirection, Sparkline, Widget};

use super::stats::{DashboardStats, Latency, percent};
use crate::cli::table::or_dash;

/// Columns of the labels.
const LABEL: u16 = 13;
/// Rows of the chart.
const CHART_ROWS: std::ops::RangeInclusive<u16> = 2..=12;
/// From this height on, empty lines separate the groups.
const ROOMY_HEIGHT: u16 = 20;
/// The chart's units per token/s.
const CHART_SCALE: f64 = 100.0;
/// Shares of the KV cache from which on it is shown as filling up, and as full.
const KV_HIGH: f64 = 0.75;
const KV_FULL: f64 = 0.95;

/// What the screen shows.
#[derive(Clone, Debug)]
pub struct View {
    /// The statistics.
    pub stats: DashboardStats,
    /// Output tokens per second of the intervals so far, the oldest first.
    pub speeds: Vec<f64>,
    /// Time between two of them.
    pub interval: Duration,
    /// Whether the picture stands still.
    pub paused: bool,
    /// Why there are no new statistics.
    pub problem: Option<String>,
    /// Whether to use colours.
    pub colours: bool,
}

/// A part of the screen, one row high.
enum Row<'a> {
    Text(Line<'a>),
    /// A label and the share of something that is used.
    Gauge(&'static str, f64),
    /// The chart, with the rows that are left.
    Chart,
    /// Nothing, where there is room for it.
    Gap,
}

/// Draws the view. What does not fit is left out, from the bottom up.
pub fn render(view: &View, area: Rect, buffer: &mut Buffer) {
    let rows = view.rows();
    let gaps = rows.iter().filter(|row| matches!(row, Row::Gap)).count() as u16;
    let fixed = rows.len() as u16 - gaps - 1;
    let gap_rows = u16::from(area.height >= ROOMY_HEIGHT);
    let left = area.height.saturating_sub(fixed + gaps * gap_rows);
    let chart_rows = if left < *CHART_ROWS.start() { 0 } else { left.min(*CHART_ROWS.end()) };
    let mut rest = area;
    for row in rows {
        let height = match row {
            Row::Text(_) | Row::Gauge(..) => 1,
            Row::Chart => chart_rows,
            Row::Gap => gap_rows,
        };
        let height = height.min(rest.height);
        let place = Rect { height, ..rest };
        rest = Rect { y: rest.y + height, height: rest.height - height, ..rest };
        if place.is_empty() {
            continue;
        }
        match row {
            Row::Text(line) => line.render(place, buffer),
            Row::Gauge(label, share) => view.gauge(label, share, place, buffer),
            Row::Chart => view.chart(place, buffer),
            Row::Gap => {}
        }
    }
}

impl View {
    fn rows(&self) -> Vec<Row<'_>> {
        let stats = &self.stats;
        let mut rows = vec![Row::Text(self.title())];
        rows.extend(self.problem.as_ref().map(|problem| {
            Row::Text(Line::styled(format!("trying again: {problem}"), self.colour(Color::Red)))
        }));
        rows.push(Row::Gap);
        rows.push(self.row(
            "requests",
            &[
                format!("{} running", stats.requests_running),
                format!("{} waiting", stats.requests_waiting),
                format!("{} finished", stats.requests_finished),
                format!("{} failed", stats.requests_failed),
            ],
        ));
        rows.push(self.row(
            "speed",
            &[
                format!("{:.1} tokens/s", stats.tokens_per_second),
                format!("{:.1} prompt tokens/s", stats.prompt_tokens_per_second),
                format!("{:.2} requests/s", stats.requests_per_second),
            ],
        ));
        rows.push(Row::Chart);
        rows.push(self.row(
            "speculation",
            &[
                format!("{} tokens per step", or_dash(stats.acceptance_length, 2)),
                format!("{} accepted", percent(stats.acceptance_rate)),
                format!("{:.1} drafts/s", stats.draft_tokens_per_second),
            ],
        ));
        rows.extend(stats.kv_usage_target.map(|share| Row::Gauge("KV target", share)));
        rows.extend(stats.kv_usage_draft.map(|share| Row::Gauge("KV draft", share)));
        rows.extend(stats.draft_confidence_error.map(|error| {
            let calibrated = stats.calibrated_confidence_error;
            let calibrated = calibrated.map(|error| format!("calibrated by {}", percent(Some(error))));
            let parts = [Some(format!("the draft's off by {}", percent(Some(error)))), calibrated];
            self.row("confidence", &parts.into_iter().flatten().collect::<Vec<_>>())
        }));
        rows.push(Row::Gap);
        rows.push(Row::Text(Line::styled(
            format!("{:<13}{:>9}{:>11}{:>11}", "latency", "p50, ms", "p99, ms", "in time"),
            Style::new().add_modifier(Modifier::DIM),
        )));
        rows.push(self.latency("TTFT", stats.ttft_ms, Some(stats.ttft_attainment)));
        rows.push(self.latency("TPOT", stats.tpot_ms, Some(stats.tpot_attainment)));
        rows.push(self.latency("step", stats.step_ms, None));
        rows.push(self.row(
            "objectives",
            &[
                format!("{} attained", percent(stats.attainment)),
                format!("goodput {:.2} requests/s", stats.goodput_rps),
            ],
        ));
        rows.push(Row::Gap);
        let keys = if self.paused { "q quit   p go on" } else { "q quit   p pause" };
        rows.push(Row::Text(Line::styled(keys, Style::new().add_modifier(Modifier::DIM))));
        rows
    }

    fn title(&self) -> Line<'static> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut title = Line::styled(format!("{}, policy {}", self.stats.model, self.stats.policy), bold);
        if self.paused {
            title.push_span(Span::raw("  "));
            title.push_span(Span::styled(" paused ", Style::new().add_modifier(Modifier::REVERSED)));
        }
        title
    }

    fn row(&self, label: &'static str, parts: &[String]) -> Row<'static> {
        Row::Text(Line::from(vec![self.label(label), Span::raw(parts.join("   "))]))
    }

    fn label(&self, label: &'static str) -> Span<'static> {
        Span::styled(format!("{label:<width$}", width = usize::from(LABEL)), self.colour(Color::Cyan))
    }

    /// A row of the table; `in_time` if there is an objective for it.
    fn latency(&self, label: &'static str, latency: Latency, in_time: Option<Option<f64>>) -> Row<'static> {
        let in_time = in_time.map_or_else(String::new, percent);
        let cells = format!("{:>9}{:>11}{in_time:>11}", or_dash(latency.p50, 2), or_dash(latency.p99, 2));
        Row::Text(Line::from(vec![self.label(label), Span::raw(cells)]))
    }

    fn gauge(&self, label: &'static str, share: f64, area: Rect, buffer: &mut Buffer) {
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        let colour = match share {
            share if share >= KV_FULL => Color::Red,
            share if share >= KV_HIGH => Color::Yellow,
            _ => Color::Green,
        };
        Line::from(self.label(label)).render(area, buffer);
        let indent = LABEL.min(area.width);
        let area = Rect { x: area.x + indent, width: area.width - indent, ..area };
        LineGauge::default()
            .ratio(share)
            .label(format!("{:>7}", percent(Some(share))))
            .filled_symbol("█")
            .unfilled_symbol("░")
            .filled_style(self.colour(colour))
            .unfilled_style(Style::new().add_modifier(Modifier::DIM))
            .render(area, buffer);
    }

    /// The newest speeds, as many as there are columns, under a line that says what they are.
    fn chart(&self, area: Rect, buffer: &mut Buffer) {
        let newest: Vec<f64> = self.speeds.iter().rev().take(area.width.into()).copied().collect();
        let most = newest.iter().copied().fold(0.0, f64::max);
        let span = spoken(self.interval * newest.len() as u32);
        let caption = format!("tokens/s over the last {span}, at most {most:.1}");
        let caption = Line::styled(caption, Style::new().add_modifier(Modifier::DIM));
        caption.render(Rect { height: 1, ..area }, buffer);
        let area = Rect { y: area.y + 1, height: area.height - 1, ..area };
        Sparkline::default()
            .data(newest.iter().map(|speed| (speed * CHART_SCALE) as u64))
            .direction(RenderDirection::RightToLeft)
            .style(self.colour(Color::Green))
            .render(area, buffer);
    }

    fn colour(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }
}

/// A duration in the unit that reads well.
fn spoken(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn view() -> View {
        let latency = Latency { p50: Some(12.345), p99: None };
        let stats = DashboardStats {
            model: "tiny".to_owned(),
            policy: "fixed:4".to_owned(),
            requests_running: 3,
            requests_waiting: 2,
            requests_finished: 120,
            requests_failed: 1,
            tokens_per_second: 123.45,
            prompt_tokens_per_second: 10.0,
            requests_per_second: 1.5,
            goodput_rps: 1.25,
            attainment: Some(0.975),
            ttft_attainment: Some(0.5),
            tpot_attainment: None,
            acceptance_length: Some(2.31),
            acceptance_rate: Some(0.671),
            draft_tokens_per_second: 210.0,
            draft_confidence_error: Some(0.123),
            calibrated_confidence_error: Some(0.021),
            kv_usage_target: Some(0.5),
            kv_usage_draft: Some(0.0),
            ttft_ms: latency,
            tpot_ms: latency,
            step_ms: latency,
        };
        View {
            stats,
            speeds: (0..200).map(f64::from).collect(),
            interval: Duration::from_secs(1),
            paused: false,
            problem: None,
            colours: true,
        }
    }

    /// The lines of a terminal of this size.
    fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
        let drawn = terminal.draw(|frame| render(view, frame.area(), frame.buffer_mut()));
        let buffer = drawn.expect("in memory").buffer;
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn a_usual_terminal_shows_everything() {
        let lines = screen(&view(), 80, 24);
        let expected = [
            "tiny, policy fixed:4",
            "",
            "requests     3 running   2 waiting   120 finished   1 failed",
            "speed        123.5 tokens/s   10.0 prompt tokens/s   1.50 requests/s",
            "tokens/s over the last 80 s, at most 199.0",
        ];
        assert_eq!(lines[..5], expected);
        let bottom = [
            "speculation  2.31 tokens per step   67.1 % accepted   210.0 drafts/s",
            "KV target     50.0 % █████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░",
            "KV draft       0.0 % ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░",
            "confidence   the draft's off by 12.3 %   calibrated by 2.1 %",
            "",
            "latency        p50, ms    p99, ms    in time",
            "TTFT             12.35          -     50.0 %",
            "TPOT             12.35          -          -",
            "step             12.35          -",
            "objectives   97.5 % attained   goodput 1.25 requests/s",
            "",
            "q quit   p pause",
        ];
        let start = lines.iter().position(|line| line.starts_with("speculation")).expect("shown");
        assert_eq!(lines[start..start + bottom.len()], bottom, "{lines:#?}");
        let chart = &lines[5..start];
        assert!(chart.len() > 2 && chart[0].ends_with('█') && !chart[0].starts_with('█'), "{chart:#?}");
        assert!(chart[chart.len() - 1].starts_with('█'));
    }

    #[test]
    fn a_small_terminal_shows_what_matters_most() {
        let lines = screen(&view(), 20, 5);
        let expected = [
            "tiny, policy fixed:4",
            "requests     3 runni",
            "speed        123.5 t",
            "speculation  2.31 to",
            "KV target     50.0 %",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn no_size_and_no_number_is_too_odd() {
        let mut odd = view();
        odd.problem = Some("x".repeat(500));
        odd.paused = true;
        odd.stats.model = "模\u{1b}[31m型".repeat(50);
        odd.stats.kv_usage_target = Some(f64::NAN);
        odd.stats.kv_usage_draft = Some(7.0);
        odd.stats.tokens_per_second = f64::INFINITY;
        odd.speeds = vec![f64::NAN, f64::INFINITY, -1.0, 1e300, 0.0];
        let mut idle = view();
        idle.speeds.clear();
        for view in [&view(), &odd, &idle] {
            for (width, height) in (0..30).flat_map(|width| (0..30).map(move |height| (width, height))) {
                screen(view, width, height);
            }
            for (width, height) in [(0, 0), (1, 1), (500, 1), (1, 200), (300, 100)] {
                screen(view, width, height);
            }
        }
    }

    #[test]
    fn a_pause_and_a_problem_are_said() {
        let paused = screen(&View { paused: true, ..view() }, 80, 24);
        assert_eq!(paused[0], "tiny, policy fixed:4   paused");
        assert!(paused.iter().any(|line| line == "q quit   p go on"));
        let problem = View { problem: Some("no daemon".to_owned()), ..view() };
        assert_eq!(screen(&problem, 80, 24)[1], "trying again: no daemon");
    }

    #[test]
    fn without_colours_nothing_is_coloured() {
        let coloured = |view: &View| {
            let area = Rect::new(0, 0, 80, 24);
            let mut buffer = Buffer::empty(area);
            render(view, area, &mut buffer);
            buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(coloured(&view()));
        assert!(!coloured(&View { colours: false, problem: Some("no daemon".to_owned()), ..view() }));
    }
}
