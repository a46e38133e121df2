//! Parser of metrics pages in the Prometheus text format.

use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// Samples of a metrics page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

impl Page {
    /// Parses a page. Unrecognized lines are skipped, since a newer daemon may export more.
    pub fn parse(text: &str) -> Page {
        Page { samples: text.lines().filter_map(parse_line).collect() }
    }

    /// Sum of all samples of `name` over all labels; 0 without samples.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|sample| sample.value).sum()
    }

    /// Sample of `name` with this label.
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let mut samples = self.named(name);
        samples
            .find(|sample| sample.labels.get(label).is_some_and(|own| own == value))
            .map(|sample| sample.value)
    }

    /// Value of a label of `name`.
    pub fn label<'a>(&'a self, name: &'a str, label: &str) -> Option<&'a str> {
        self.named(name).find_map(|sample| sample.labels.get(label)).map(String::as_str)
    }

    /// Upper edges and cumulative counts of a histogram without other labels, ascending.
    pub fn buckets(&self, histogram: &str) -> Vec<(f64, f64)> {
        let name = format!("{histogram}_bucket");
        let edge = |sample: &Sample| sample.labels.get("le")?.parse().ok();
        let mut buckets: Vec<(f64, f64)> =
            self.named(&name).filter_map(|sample| Some((edge(sample)?, sample.value))).collect();
        buckets.sort_by(|left, right| left.0.total_cmp(&right.0));
        buckets
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(labels) => parse_labels(labels)?,
        None => (Labels::new(), rest),
    };
    Some(Sample { name: name.to_owned(), labels, value: value.trim().parse().ok()? })
}

/// Parses labels up to the closing brace; also returns the rest.
fn parse_labels(mut text: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let (value, rest) = parse_quoted(rest)?;
        labels.insert(key.to_owned(), value);
        text = rest;
    }
}

/// Parses up to the closing quote and unescapes.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP requests_total Requests.\n\
        # TYPE requests_total counter\n\
        requests_total{reason=\"stop\"} 3\n\
        requests_total{reason=\"length\",} 4\n\
        info{model=\"a \\\"b\\\" \\\\ c\",policy=\"fixed:4\"} 1\n\
        gauge 0.25\n\
        time_seconds_bucket{le=\"+Inf\"} 9\n\
        time_seconds_bucket{le=\"0.5\"} 2\n\
        not a sample\n\
        broken{a=\"b 1\n";

    #[test]
    fn samples_are_found_by_name_and_label() {
        let page = Page::parse(TEXT);
        assert_eq!(page.sum("requests_total"), 7.0);
        assert_eq!(page.labelled("requests_total", "reason", "length"), Some(4.0));
        assert_eq!(page.labelled("requests_total", "reason", "other"), None);
        assert_eq!(page.sum("gauge"), 0.25);
        assert_eq!(page.sum("absent"), 0.0);
        assert_eq!(page.samples.len(), 6);
    }

    #[test]
    fn label_values_are_unescaped() {
        let page = Page::parse(TEXT);
        assert_eq!(page.label("info", "model"), Some("a \"b\" \\ c"));
        assert_eq!(page.label("info", "policy"), Some("fixed:4"));
    }

    #[test]
    fn buckets_ascend_to_infinity() {
        assert_eq!(Page::parse(TEXT).buckets("time_seconds"), [(0.5, 2.0), (f64::INFINITY, 9.0)]);
    }
}
