//! Compiles what is written in C++, as libtorch's own headers are: `src/look.cpp`.

fn main() {
    #[cfg(not(feature = "doc-only"))]
    look::build();
}

#[cfg(not(feature = "doc-only"))]
mod look {
    use std::env::var_os;
    use std::path::PathBuf;

    pub fn build() {
        println!("cargo:rerun-if-changed=src/look.cpp");
        println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
        // torch-sys tells where it has found the libraries. The headers are beside them, or where it was told.
        let beside = var_os("DEP_TCH_LIBTORCH_LIB").map(|lib| PathBuf::from(lib).join(".."));
        let root = var_os("LIBTORCH_INCLUDE").map(PathBuf::from).or(beside).unwrap_or_default();
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .include(root.join("include"))
            .include(root.join("include/torch/csrc/api/include"))
            .warnings(false)
            .file("src/look.cpp")
            .compile("tensorcask_look");
    }
}
