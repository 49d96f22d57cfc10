//! Compiles `src/look.cpp`, which is written in C++ as it needs libtorch's own headers.

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
        for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_USE_PYTORCH", "LIBTORCH_CXX11_ABI"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        // The folders that torch-sys searches: those in the environment, or else the parent of the libraries that it
        // found.
        let named = ["LIBTORCH_INCLUDE", "LIBTORCH"].map(var_os).into_iter().flatten().map(PathBuf::from).next();
        let named = named.filter(|_| var_os("LIBTORCH_USE_PYTORCH").is_none());
        let beside = var_os("DEP_TCH_LIBTORCH_LIB").map(|lib| PathBuf::from(lib).join(".."));
        let root = named.or(beside).unwrap_or_default();
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .define("_GLIBCXX_USE_CXX11_ABI", std::env::var("LIBTORCH_CXX11_ABI").as_deref().unwrap_or("1"))
            .include(root.join("include"))
            .include(root.join("include/torch/csrc/api/include"))
            .warnings(false)
            .file("src/look.cpp")
            .compile("tensorcask_look");
    }
}
