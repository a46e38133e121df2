//! Trace files: CSV with a header, or JSON Lines.
//!
//! Both have `arrival_s`, `prompt_tokens` and `output_tokens`; other columns and keys are
//! ignored. Lengths may be empty (in JSON: absent or null) if they are drawn instead.

use serde::Deserialize;

use super::TraceError;

/// Most requests of one trace.
pub const TRACE_ROWS_MAX: usize = 10_000_000;
/// Latest arrival, in seconds: a year.
const ARRIVAL_S_MAX: f64 = 31_536_000.0;

/// One request of a trace file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceRow {
    /// Line number from 1.
    pub line: usize,
    /// Seconds since the trace's start.
    pub arrival_s: f64,
    /// Prompt length in tokens.
    pub prompt_tokens: Option<u32>,
    /// Output length in tokens.
    pub output_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct JsonRow {
    arrival_s: f64,
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    output_tokens: Option<u32>,
}

/// Parses CSV without quoting.
///
/// # Errors
/// [`TraceError::Line`].
pub fn parse_csv(text: &str) -> Result<Vec<TraceRow>, TraceError> {
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> =
        lines.next().map(|(_, line)| line.split(',').map(str::trim).collect()).unwrap_or_default();
    let column = |name: &str| {
        let place = header.iter().position(|&field| field == name);
        place.ok_or_else(|| TraceError::Line { line: 1, problem: format!("the header has no {name}") })
    };
    let (arrival, prompt, output) =
        (column("arrival_s")?, column("prompt_tokens")?, column("output_tokens")?);
    let mut rows = Rows::default();
    for (index, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let problem = |problem: String| TraceError::Line { line: index + 1, problem };
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        if fields.len() != header.len() {
            return Err(problem(format!("{} fields under {} headers", fields.len(), header.len())));
        }
        let length = |place: usize| match fields[place] {
            "" => Ok(None),
            text => text
                .parse::<u32>()
                .map(Some)
                .map_err(|_| problem(format!("{} is {text:?}, not a whole number", header[place]))),
        };
        let arrival_s = fields[arrival].parse();
        let arrival_s =
            arrival_s.map_err(|_| problem(format!("arrival_s is {:?}, not a number", fields[arrival])))?;
        let (prompt_tokens, output_tokens) = (length(prompt)?, length(output)?);
        rows.push(TraceRow { line: index + 1, arrival_s, prompt_tokens, output_tokens })?;
    }
    Ok(rows.0)
}

/// Parses JSON Lines.
///
/// # Errors
/// [`TraceError::Line`].
pub fn parse_jsonl(text: &str) -> Result<Vec<TraceRow>, TraceError> {
    let mut rows = Rows::default();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: JsonRow = serde_json::from_str(line)
            .map_err(|error| TraceError::Line { line: index + 1, problem: error.to_string() })?;
        let JsonRow { arrival_s, prompt_tokens, output_tokens } = row;
        rows.push(TraceRow { line: index + 1, arrival_s, prompt_tokens, output_tokens })?;
    }
    Ok(rows.0)
}

/// Rows so far, in order of arrival.
#[derive(Default)]
struct Rows(Vec<TraceRow>);

impl Rows {
    fn push(&mut self, row: TraceRow) -> Result<(), TraceError> {
        let last = self.0.last().map_or(0.0, |last| last.arrival_s);
        let problem = if !(0.0..=ARRIVAL_S_MAX).contains(&row.arrival_s) {
            format!("arrival_s is {}, not within 0 to {ARRIVAL_S_MAX}", row.arrival_s)
        } else if row.arrival_s < last {
            format!("arrival_s falls from {last} to {}", row.arrival_s)
        } else if row.prompt_tokens == Some(0) || row.output_tokens == Some(0) {
            "a request has at least one prompt and one output token".to_owned()
        } else if self.0.len() >= TRACE_ROWS_MAX {
            format!("more than {TRACE_ROWS_MAX} requests")
        } else {
            self.0.push(row);
            return Ok(());
        };
        Err(TraceError::Line { line: row.line, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(result: Result<Vec<TraceRow>, TraceError>) -> String {
        result.expect_err("the trace is bad").to_string()
    }

    #[test]
    fn other_columns_are_ignored_in_any_order() {
        let text = "service,output_tokens,arrival_s,prompt_tokens\nchat,3,0.5,10\n\ncode,,1.5, 20 \n";
        let expected = [
            TraceRow { line: 2, arrival_s: 0.5, prompt_tokens: Some(10), output_tokens: Some(3) },
            TraceRow { line: 4, arrival_s: 1.5, prompt_tokens: Some(20), output_tokens: None },
        ];
        assert_eq!(parse_csv(text).unwrap(), expected);
        let json = "{\"arrival_s\":0.5,\"prompt_tokens\":10,\"output_tokens\":3,\"hash_ids\":[1]}\n";
        assert_eq!(parse_jsonl(json).unwrap()[0], TraceRow { line: 1, ..expected[0] });
        assert_eq!(parse_jsonl("{\"arrival_s\":0.5}").unwrap()[0].prompt_tokens, None);
    }

    #[test]
    fn a_bad_line_is_reported_with_its_problem() {
        let csv = |rows: &str| problem(parse_csv(&format!("arrival_s,prompt_tokens,output_tokens\n{rows}")));
        assert_eq!(csv("0,1,1\nx,1,1"), "line 3: arrival_s is \"x\", not a number");
        assert_eq!(csv("0,1.5,1"), "line 2: prompt_tokens is \"1.5\", not a whole number");
        assert_eq!(csv("0,1"), "line 2: 2 fields under 3 headers");
        assert_eq!(csv("2,1,1\n1,1,1"), "line 3: arrival_s falls from 2 to 1");
        assert!(csv("-1,1,1").contains("not within 0"));
        assert!(csv("NaN,1,1").contains("not within 0"));
        assert!(csv("0,0,1").contains("at least one prompt"));
        assert_eq!(
            problem(parse_csv("arrival_s,prompt_tokens\n")),
            "line 1: the header has no output_tokens"
        );
        assert_eq!(problem(parse_csv("")), "line 1: the header has no arrival_s");
        assert!(problem(parse_jsonl("{\"arrival_s\":1}\n{\"prompt_tokens\":1}")).starts_with("line 2: "));
        assert!(problem(parse_jsonl("{\"arrival_s\":1,\"prompt_tokens\":-1}")).starts_with("line 1: "));
    }
}
