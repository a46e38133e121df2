//! Tests that run once for each instruction set, and say which ones this processor lacks.
#![forbid(unsafe_code)]

use std::io::Write;

use super::InstructionSet;

/// Runs `check` on `set`, or reports the test `name` as skipped if the processor lacks it.
///
/// The report goes straight to standard error: libtest captures what `eprintln!` prints, and
/// .ci/run counts these lines.
pub(crate) fn run_or_skip(set: InstructionSet, name: &str, check: fn(InstructionSet)) {
    if InstructionSet::available().contains(&set) {
        check(set);
        return;
    }
    let line = format!("skipped: {name} (this processor lacks {})\n", set.name());
    std::io::stderr().write_all(line.as_bytes()).expect("standard error takes a line");
}

/// Turns each function `check(set: InstructionSet)` into three tests: `check::avx512`,
/// `check::avx2` and `check::portable`.
macro_rules! on_each_set {
    ($($check:ident),+ $(,)?) => {
        $(mod $check {
            use crate::executor::cpu::InstructionSet;
            use crate::executor::cpu::each_set::run_or_skip;

            #[test]
            fn avx512() {
                run_or_skip(InstructionSet::Avx512, concat!(module_path!(), "::avx512"), super::$check);
            }

            #[test]
            fn avx2() {
                run_or_skip(InstructionSet::Avx2, concat!(module_path!(), "::avx2"), super::$check);
            }

            #[test]
            fn portable() {
                run_or_skip(InstructionSet::Portable, concat!(module_path!(), "::portable"), super::$check);
            }
        })+
    };
}
pub(crate) use on_each_set;
