//! `[slo]`: request classes with latency objectives, most urgent first.

use toml::Value;

use super::reader::{Integer, Number, Problems, Section};
use super::render::{Entry, Rendered, number};
use crate::pacing::{LateAction, ServiceOrder};
use crate::protocol::{Micros, Slo};

/// Most classes; requests refer to a class by a small index.
pub const CLASSES_MAX: usize = 16;
/// Highest weight of a class.
pub const CLASS_WEIGHT_MAX: f64 = 1000.0;

const TTFT_MS: Integer = Integer::new("ttft_ms", 1_000, 1, 3_600_000);
const TPOT_MS: Integer = Integer::new("tpot_ms", 50, 1, 3_600_000);
const WEIGHT: Number = Number { name: "weight", default: 1.0, min: 0.0, max: CLASS_WEIGHT_MAX };
const NAME_BOUND: &str = "1 to 32 of a-z, 0-9, - and _";
const NAME_BYTES_MAX: usize = 32;
const INFEASIBLE_BOUND: &str = "\"best_effort\" or \"reject\"";
const LATE_BOUND: &str = "\"queue\", \"demote\" or \"reject\"";
const CLASSES_ADVICE: &str = "write each class as [[slo.classes]], 1 to 16 of them, most urgent first";

/// Treatment of requests whose objective cannot be met even on an idle machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfeasibleAction {
    /// Serve them best-effort, and count them.
    BestEffort,
    /// Reject them with 400.
    Reject,
}

impl InfeasibleAction {
    fn name(self) -> &'static str {
        match self {
            InfeasibleAction::BestEffort => "best_effort",
            InfeasibleAction::Reject => "reject",
        }
    }

    fn parse(text: &str) -> Result<InfeasibleAction, String> {
        match text {
            "best_effort" => Ok(InfeasibleAction::BestEffort),
            "reject" => Ok(InfeasibleAction::Reject),
            _ => Err("is not a known action".to_owned()),
        }
    }
}

/// A named pair of objectives.
#[derive(Clone, Debug, PartialEq)]
pub struct SloClass {
    /// Class name in requests.
    pub name: String,
    /// Objectives; `None` leaves one unbounded.
    pub slo: Slo,
    /// What attaining them is worth beside other classes.
    pub weight: f64,
}

impl SloClass {
    /// A class of the default weight.
    pub fn new(name: impl Into<String>, slo: Slo) -> SloClass {
        SloClass { name: name.into(), slo, weight: WEIGHT.default }
    }
}

/// Request classes and admission rules.
#[derive(Clone, Debug, PartialEq)]
pub struct SloConfig {
    /// At least one; the index is the priority, 0 the most urgent.
    pub classes: Vec<SloClass>,
    /// Index of the class of requests that do not name one.
    pub default_class: u8,
    /// Treatment of infeasible objectives.
    pub infeasible: InfeasibleAction,
    /// Treatment of requests that the queue delays past their TTFT objective.
    pub late: LateAction,
}

impl SloConfig {
    /// The index of the class `name`.
    pub fn class(&self, name: &str) -> Option<u8> {
        self.classes.iter().position(|class| class.name == name).map(|index| index as u8)
    }

    /// Reads the section. Where it names no action for late requests the default depends on the
    /// order of service: see [`late_in`](Self::late_in).
    pub(super) fn read(file: &mut toml::Table, problems: &mut Problems) -> (SloConfig, Option<LateAction>) {
        let mut section = Section::take(file, "slo", problems);
        let default_name =
            section.parsed("default_class", "give the name of a class", |text| Ok(text.to_owned()));
        let infeasible =
            section.parsed("infeasible", &format!("give {INFEASIBLE_BOUND}"), InfeasibleAction::parse);
        let late = section.parsed("late", &format!("give {LATE_BOUND}"), |text| {
            text.parse::<LateAction>().map_err(|_| "is not a known action".to_owned())
        });
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
            infeasible: infeasible.unwrap_or(InfeasibleAction::BestEffort),
            late: late.unwrap_or(LateAction::Queue),
        };
        if config.classes.is_empty() {
            config.classes.push(SloClass::new("default", Slo::default()));
        }
        config.check_names(problems);
        if let Some(name) = default_name {
            config.choose_default(&name, problems);
        }
        (config, late)
    }

    /// What to do with late requests where it is not configured.
    pub fn late_in(order: ServiceOrder) -> LateAction {
        match order {
            ServiceOrder::Fifo => LateAction::Queue,
            ServiceOrder::Slo => LateAction::Demote,
        }
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
                    "give each class a unique name",
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
        let weight = section.number(&WEIGHT);
        section.finish();
        SloClass { name, slo, weight }
    }

    fn entries(&self) -> [Entry; 4] {
        let millis = |span: Option<Micros>| span.map(|span| number(span.0 / 1000));
        [
            Entry::text("name", self.name.clone(), NAME_BOUND),
            Entry::optional(TTFT_MS.name, millis(self.slo.ttft), TTFT_MS.bound()),
            Entry::optional(TPOT_MS.name, millis(self.slo.tpot), TPOT_MS.bound()),
            Entry::number(&WEIGHT, self.weight),
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
