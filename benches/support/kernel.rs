//! The kernel that a report was measured on.

/// The kernel's release, and whether the guest of a hypervisor returns free memory to its host. Each first touch of a
/// page then costs some microseconds, in whatever is measured.
pub(crate) fn kernel() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    /// The kernel does not make blocks of more pages than 2 to this power.
    const LARGEST_ORDER: u32 = 10;
    let reporting = match read("/sys/module/page_reporting/parameters/page_reporting_order").parse::<u32>() {
        Ok(order) if order <= LARGEST_ORDER => " (gives free memory back to its host)",
        Ok(_) => " (gives no free memory back to its host)",
        Err(_) => "",
    };
    read("/proc/sys/kernel/osrelease") + reporting
}
