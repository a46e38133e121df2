//! `[slo]`: classes of latency objectives, the most urgent first.

use toml::Value;

use super::reader::{Integer, Problems, Section};
use super::render::{Entry, Rendered, number};
use crate::protocol::{Micros, Slo};

/// Most classes; a class is a small index in every request.
pub const CLASSES_MAX: usize = 16;

const TTFT_MS: Integer = Integer::new("ttft_ms", 1_000, 1, 3_600_000);
const TPOT_MS: Integer = Integer::new("tpot_ms", 50, 1, 3_600_000);
const NAME_BOUND: &str = "1 to 32 of a-z, 0-9, - and _";
const NAME_BYTES_MAX: usize = 32;
const INFEASIBLE_BOUND: &str = "\"best_effort\" or \"reject\"";
const LATE_BOUND: &str = "\"queue\" or \"reject\"";
const CLASSES_ADVICE: &str = "write each class as [[slo.classes]], 1 to 16 of them, the most urgent first";

/// What happens to a request whose objective can't be met even on an empty machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Infeasible {
    /// It is served as well as may be, and counted.
    BestEffort,
    /// It is refused with 400.
    Reject,
}

impl Infeasible {
    fn name(self) -> &'static str {
        match self {
            Infeasible::BestEffort => "best_effort",
            Infeasible::Reject => "reject",
        }
    }

    fn parse(text: &str) -> Result<Infeasible, String> {
        match text {
            "best_effort" => Ok(Infeasible::BestEffort),
            "reject" => Ok(Infeasible::Reject),
            _ => Err("is not a choice".to_owned()),
        }
    }
}

/// What happens to a request whose first token would come too late because of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It waits its turn.
    Queue,
    /// It is refused with 503, so that the caller can go elsewhere.
    Reject,
}

impl Late {
    fn name(self) -> &'static str {
        match self {
            Late::Queue => "queue",
            Late::Reject => "reject",
        }
    }

    fn parse(text: &str) -> Result<Late, String> {
        match text {
            "queue" => Ok(Late::Queue),
            "reject" => Ok(Late::Reject),
            _ => Err("is not a choice".to_owned()),
        }
    }
}

/// A named pair of objectives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SloClass {
    /// What requests call it.
    pub name: String,
    /// Its objectives; `None` leaves a side unbounded.
    pub slo: Slo,
}

/// Classes and what to do with the impossible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SloConfig {
    /// At least one; the place is the priority, 0 the most urgent.
    pub classes: Vec<SloClass>,
    /// Index of the class of requests that name none.
    pub default_class: u8,
    /// What happens to impossible objectives.
    pub infeasible: Infeasible,
    /// What happens to requests whose first token the queue would make too late.
    pub late: Late,
}

impl SloConfig {
    /// The index of the class `name`.
    pub fn class(&self, name: &str) -> Option<u8> {
        self.classes.iter().position(|class| class.name == name).map(|index| index as u8)
    }

    pub(super) fn read(file: &mut toml::Table, problems: &mut Problems) -> SloConfig {
        let mut section = Section::take(file, "slo", problems);
        let default_name =
            section.parsed("default_class", "give the name of a class", |text| Ok(text.to_owned()));
        let infeasible = section.parsed("infeasible", &format!("give {INFEASIBLE_BOUND}"), Infeasible::parse);
        let late = section.parsed("late", &format!("give {LATE_BOUND}"), Late::parse);
        let tables = read_class_tables(&mut section);
        section.finish();

        let mut config = SloConfig {
            classes: tables
                .into_iter()
                .enumerate()
                .map(|(index, table)| {
                    SloClass::read(Section::new(format!("slo.classes[{index}]"), table, problems))
                })
                .collect(),
            default_class: 0,
            infeasible: infeasible.unwrap_or(Infeasible::BestEffort),
            late: late.unwrap_or(Late::Queue),
        };
        if config.classes.is_empty() {
            config.classes.push(SloClass { name: "default".to_owned(), slo: Slo::default() });
        }
        config.check_names(problems);
        if let Some(name) = default_name {
            config.choose_default(&name, problems);
        }
        config
    }

    fn check_names(&self, problems: &mut Problems) {
        for (index, class) in self.classes.iter().enumerate() {
            if self.class(&class.name) != Some(index as u8) && !class.name.is_empty() {
                let path = format!("slo.classes[{index}].name");
                let value = Value::String(class.name.clone()).to_string();
                problems.add(
                    &path,
                    Some(value),
                    "is the name of an earlier class",
                    "give each class its own name",
                );
            }
        }
    }

    fn choose_default(&mut self, name: &str, problems: &mut Problems) {
        match self.class(name) {
            Some(index) => self.default_class = index,
            None => {
                let names: Vec<&str> = self.classes.iter().map(|class| class.name.as_str()).collect();
                let value = Value::String(name.to_owned()).to_string();
                let advice = format!("name one of {}", names.join(", "));
                problems.add("slo.default_class", Some(value), "is not a class", advice);
            }
        }
    }

    pub(super) fn render(&self, rendered: &mut Rendered) {
        let default = &self.classes[usize::from(self.default_class)].name;
        rendered.section(
            "slo",
            &[
                Entry::text("default_class", default.clone(), "the name of a class"),
                Entry::text("infeasible", self.infeasible.name(), INFEASIBLE_BOUND),
                Entry::text("late", self.late.name(), LATE_BOUND),
            ],
        );
        for class in &self.classes {
            rendered.element("slo", "classes", &class.entries());
        }
    }
}

impl SloClass {
    fn read(mut section: Section<'_>) -> SloClass {
        let given = section.take_value("name");
        let name = match given {
            Some(Value::String(text)) if is_class_name(&text) => text,
            Some(other) => {
                section.reject("name", &other, "is not a class name", format!("give {NAME_BOUND}"));
                String::new()
            }
            None => {
                section.missing("name", format!("give {NAME_BOUND}"));
                String::new()
            }
        };
        let slo = Slo {
            ttft: section.optional_integer(&TTFT_MS).map(Micros::from_millis),
            tpot: section.optional_integer(&TPOT_MS).map(Micros::from_millis),
        };
        section.finish();
        SloClass { name, slo }
    }

    fn entries(&self) -> [Entry; 3] {
        let millis = |span: Option<Micros>| span.map(|span| number(span.0 / 1000));
        [
            Entry::text("name", self.name.clone(), NAME_BOUND),
            Entry::optional(TTFT_MS.name, millis(self.slo.ttft), TTFT_MS.bound()),
            Entry::optional(TPOT_MS.name, millis(self.slo.tpot), TPOT_MS.bound()),
        ]
    }
}

fn is_class_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

fn read_class_tables(section: &mut Section<'_>) -> Vec<toml::Table> {
    match section.take_value("classes") {
        None => Vec::new(),
        Some(Value::Array(elements))
            if (1..=CLASSES_MAX).contains(&elements.len()) && elements.iter().all(Value::is_table) =>
        {
            elements.into_iter().filter_map(|element| element.as_table().cloned()).collect()
        }
        Some(other) => {
            section.reject("classes", &other, "is not a list of 1 to 16 classes", CLASSES_ADVICE);
            Vec::new()
        }
    }
}
