//! The doctor on a machine with a GPU.

use specserve::doctor;

#[test]
#[ignore = "needs a CUDA device"]
fn the_doctor_finds_and_measures_the_device() {
    let report = doctor::report();
    println!("{report}");
    assert!(report.cuda_works(), "{report}");
    for subject in ["GPU", "device memory free", "copy bandwidth", "host to device", "bf16 matrix rate"] {
        assert!(
            report.findings.iter().any(|finding| finding.subject == subject),
            "{subject} is missing: {report}"
        );
    }
}
