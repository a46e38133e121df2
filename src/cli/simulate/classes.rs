//! Classes of requests on the command line.

use crate::cli::error::CliError;
use crate::cli::parse;
use crate::config::{CLASSES_MAX, SloClass, SloConfig};
use crate::protocol::Slo;
use crate::simulate::SimulatedClass;

/// How far the shares may add up to something else than 1.
const SHARES_TOLERANCE: f64 = 1e-6;
/// For error messages.
const FORM: &str = "NAME:share=S,ttft_ms=N,tpot_ms=N";

/// A class as one `--class` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassArg {
    /// Its name; what is not given here, a class of this name in the configuration gives.
    name: String,
    /// Share of the requests.
    share: f64,
    /// The objectives that are given.
    slo: Slo,
}

/// Parses `NAME:share=S,ttft_ms=N,tpot_ms=N`; the objectives are optional.
pub fn parse(text: &str) -> Result<ClassArg, String> {
    let Some((name, parts)) = text.split_once(':').filter(|(name, _)| !name.is_empty()) else {
        return Err(format!("must be {FORM}"));
    };
    let share_of = |part: &str| part.trim().strip_prefix("share=").map(str::to_owned);
    let shares: Vec<String> = parts.split(',').filter_map(share_of).collect();
    let [share] = &shares[..] else { return Err(format!("needs one share: {FORM}")) };
    let objectives: Vec<&str> = parts.split(',').filter(|part| share_of(part).is_none()).collect();
    Ok(ClassArg {
        name: name.to_owned(),
        share: parse::positive(share).map_err(|error| format!("share: {error}"))?,
        slo: parse::slo(&objectives.join(","))?,
    })
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
        return Ok(vec![match default {
            Some(class) => simulated(&class.name, 1.0, slo, Some(class)),
            None => simulated("default", 1.0, slo, None),
        }]);
    }
    let class = |one: &ClassArg| {
        let configured = config.and_then(|config| config.classes.iter().find(|class| class.name == one.name));
        simulated(&one.name, one.share, one.slo, configured)
    };
    let classes: Vec<SimulatedClass> = given.iter().map(class).collect();
    check(&classes)?;
    Ok(classes)
}

fn simulated(name: &str, share: f64, slo: Slo, configured: Option<&SloClass>) -> SimulatedClass {
    let others = configured.map(|class| class.slo).unwrap_or_default();
    let slo = Slo { ttft: slo.ttft.or(others.ttft), tpot: slo.tpot.or(others.tpot) };
    SimulatedClass { name: name.to_owned(), share, slo }
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
        SimulatedClass { name: name.to_owned(), share, slo: Slo::default() }
    }

    fn given(name: &str, share: f64) -> ClassArg {
        ClassArg { name: name.to_owned(), share, slo: Slo::default() }
    }

    #[test]
    fn a_class_has_a_name_a_share_and_objectives_if_any() {
        let slo = Slo { ttft: Some(Micros::from_millis(1000)), tpot: Some(Micros(12_500)) };
        let interactive = parse("interactive:share=0.3,ttft_ms=1000,tpot_ms=12.5");
        assert_eq!(interactive, Ok(ClassArg { slo, ..given("interactive", 0.3) }));
        assert_eq!(parse("batch:share=1"), Ok(given("batch", 1.0)));
        for bad in [
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
