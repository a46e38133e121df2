//! Classes of requests on the command line.

use crate::cli::error::CliError;
use crate::cli::parse;
use crate::config::{CLASS_WEIGHT_MAX, CLASSES_MAX, SloClass, SloConfig};
use crate::protocol::Slo;
use crate::simulate::SimulatedClass;

/// How far the shares may add up to something else than 1.
const SHARES_TOLERANCE: f64 = 1e-6;
const SHARE: &str = "share=";
const WEIGHT: &str = "weight=";
/// For error messages.
const FORM: &str = "NAME:share=S,ttft_ms=N,tpot_ms=N,weight=W";

/// A class as one `--class` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassArg {
    /// Its name; what is not given here, a class of this name in the configuration gives.
    name: String,
    /// Share of the requests.
    share: f64,
    /// The objectives that are given.
    slo: Slo,
    /// The weight, if one is given.
    weight: Option<f64>,
}

/// Parses `NAME:share=S,ttft_ms=N,tpot_ms=N,weight=W`; all but the share is optional.
pub fn parse(text: &str) -> Result<ClassArg, String> {
    let Some((name, parts)) = text.split_once(':').filter(|(name, _)| !name.is_empty()) else {
        return Err(format!("must be {FORM}"));
    };
    let values_of =
        |key: &str| -> Vec<&str> { parts.split(',').filter_map(|part| value_of(part, key)).collect() };
    let [share] = values_of(SHARE)[..] else { return Err(format!("needs one share: {FORM}")) };
    let weight = match values_of(WEIGHT)[..] {
        [] => None,
        [weight] => {
            Some(parse::within(weight, CLASS_WEIGHT_MAX).map_err(|error| format!("weight: {error}"))?)
        }
        _ => return Err(format!("has more than one weight: {FORM}")),
    };
    let is_objective = |part: &&str| [SHARE, WEIGHT].iter().all(|key| value_of(part, key).is_none());
    let objectives: Vec<&str> = parts.split(',').filter(is_objective).collect();
    Ok(ClassArg {
        name: name.to_owned(),
        share: parse::positive(share).map_err(|error| format!("share: {error}"))?,
        slo: parse::slo(&objectives.join(","))?,
        weight,
    })
}

/// What stands behind `key`, if `part` is about it.
fn value_of<'a>(part: &'a str, key: &str) -> Option<&'a str> {
    part.trim().strip_prefix(key)
}

/// The classes to simulate: those of `--class`, else a single one with the objectives of `--slo`.
/// What they leave open is that of the configuration's class of the same name, or of its default
/// class.
///
/// # Errors
/// As [`check`].
pub fn resolve(
    given: &[ClassArg],
    slo: Slo,
    config: Option<&SloConfig>,
) -> Result<Vec<SimulatedClass>, CliError> {
    if given.is_empty() {
        let default = config.map(|config| &config.classes[usize::from(config.default_class)]);
        let name = default.map_or("default", |class| &class.name).to_owned();
        return Ok(vec![simulated(&ClassArg { name, share: 1.0, slo, weight: None }, default)]);
    }
    let class = |one: &ClassArg| {
        let configured = config.and_then(|config| config.classes.iter().find(|class| class.name == one.name));
        simulated(one, configured)
    };
    let classes: Vec<SimulatedClass> = given.iter().map(class).collect();
    check(&classes)?;
    Ok(classes)
}

fn simulated(given: &ClassArg, configured: Option<&SloClass>) -> SimulatedClass {
    let others = configured.map(|class| class.slo).unwrap_or_default();
    let slo = Slo { ttft: given.slo.ttft.or(others.ttft), tpot: given.slo.tpot.or(others.tpot) };
    let class = SimulatedClass::new(&given.name, given.share, slo);
    match given.weight.or(configured.map(|class| class.weight)) {
        Some(weight) => SimulatedClass { weight: weight as f32, ..class },
        None => class,
    }
}

/// Whether `classes` are a whole.
///
/// # Errors
/// [`CliError::Arguments`]: shares that do not add up to 1, a name that appears twice, or too
/// many classes.
fn check(classes: &[SimulatedClass]) -> Result<(), CliError> {
    let sum: f64 = classes.iter().map(|class| class.share).sum();
    if (sum - 1.0).abs() > SHARES_TOLERANCE {
        return Err(CliError::Arguments(format!("the shares of all --class add up to {sum}, not to 1")));
    }
    let is_repeated = |place: usize| classes[..place].iter().any(|class| class.name == classes[place].name);
    if let Some(place) = (0..classes.len()).find(|&place| is_repeated(place)) {
        return Err(CliError::Arguments(format!("two --class are named {:?}", classes[place].name)));
    }
    if classes.len() > CLASSES_MAX {
        return Err(CliError::Arguments(format!("more than {CLASSES_MAX} --class")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Micros;

    fn class(name: &str, share: f64) -> SimulatedClass {
        SimulatedClass::new(name, share, Slo::default())
    }

    fn given(name: &str, share: f64) -> ClassArg {
        ClassArg { name: name.to_owned(), share, slo: Slo::default(), weight: None }
    }

    #[test]
    fn a_class_has_a_name_a_share_and_objectives_and_a_weight_if_any() {
        let slo = Slo { ttft: Some(Micros::from_millis(1000)), tpot: Some(Micros(12_500)) };
        let interactive = parse("interactive:share=0.3,ttft_ms=1000,tpot_ms=12.5");
        assert_eq!(interactive, Ok(ClassArg { slo, ..given("interactive", 0.3) }));
        assert_eq!(parse("batch:share=1"), Ok(given("batch", 1.0)));
        let worth = |weight| Ok(ClassArg { weight: Some(weight), ..given("batch", 0.5) });
        assert_eq!(parse("batch:weight=2.5,share=0.5"), worth(2.5));
        assert_eq!(parse("batch:share=0.5,weight=0"), worth(0.0));
        for bad in [
            "batch:share=1,weight=-1",
            "batch:share=1,weight=1001",
            "batch:share=1,weight=2,weight=2",
            "",
            "batch",
            ":share=1",
            "batch:",
            "batch:ttft_ms=5",
            "batch:share=0",
            "batch:share=x",
            "batch:share=0.5,share=0.5",
            "batch:share=1,itl_ms=3",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn classes_that_are_no_whole_are_refused_with_the_reason() {
        let problem = |classes: &[SimulatedClass]| check(classes).expect_err("they do not fit").to_string();
        assert!(check(&[class("a", 0.1), class("b", 0.2), class("c", 0.7)]).is_ok());
        assert_eq!(
            problem(&[class("a", 0.5), class("b", 0.25)]),
            "the shares of all --class add up to 0.75, not to 1"
        );
        assert_eq!(problem(&[class("a", 0.5), class("a", 0.5)]), "two --class are named \"a\"");
        let many: Vec<_> = (0..17).map(|index| class(&index.to_string(), 1.0 / 17.0)).collect();
        assert_eq!(problem(&many), "more than 16 --class");
    }
}
