//! The conversions that every adapter has between its tensors and arguments, inputs and outputs.

/// Implements the conversions from the tensors of an adapter: `tensorcask_cache::conversions!(Mine, Tensor);`.
///
/// A reference becomes another handle of the tensor, as by [`Framework::share`](crate::layer::Framework::share).
#[macro_export]
macro_rules! conversions {
    ($framework:ty, $tensor:ty) => {
        impl $crate::layer::IntoArgument<$framework> for &$tensor {
            fn into_argument(self) -> $crate::layer::Argument<$framework> {
                $crate::layer::Argument::Tensor(<$framework as $crate::layer::Framework>::share(self))
            }
        }

        impl $crate::layer::IntoArgument<$framework> for $tensor {
            fn into_argument(self) -> $crate::layer::Argument<$framework> {
                $crate::layer::Argument::Tensor(self)
            }
        }

        $crate::conversions!(@inputs $framework, &$tensor, |tensor| [tensor]);
        $crate::conversions!(@inputs $framework, $tensor, |tensor| [tensor]);
        $crate::conversions!(@inputs $framework, &[&$tensor], |tensors| tensors.iter().copied());

        impl<const N: usize> $crate::layer::IntoInputs<$framework> for [&$tensor; N] {
            fn into_inputs(self) -> $crate::layer::Inputs<$framework> {
                self.as_slice().into_inputs()
            }
        }

        $crate::conversions!(@output $framework, $tensor, |tensor| $crate::layer::Output::Tensor(tensor));
        $crate::conversions!(@output $framework, Vec<$tensor>, |tensors| $crate::layer::Output::list(tensors));
        $crate::conversions!(@output $framework, ($tensor, $tensor), |pair| {
            $crate::layer::Output::Tuple([pair.0, pair.1].map($crate::layer::Output::Tensor).into())
        });
        $crate::conversions!(@output $framework, ($tensor, $tensor, $tensor), |three| {
            $crate::layer::Output::Tuple([three.0, three.1, three.2].map($crate::layer::Output::Tensor).into())
        });
    };
    (@inputs $framework:ty, $type:ty, |$value:ident| $tensors:expr) => {
        impl $crate::layer::IntoInputs<$framework> for $type {
            fn into_inputs(self) -> $crate::layer::Inputs<$framework> {
                let $value = self;
                $tensors.into_iter().fold($crate::layer::Inputs::new(), $crate::layer::Inputs::with)
            }
        }
    };
    (@output $framework:ty, $type:ty, |$value:ident| $output:expr) => {
        impl $crate::layer::OutputLike<$framework> for $type {
            fn output(self) -> $crate::layer::Output<$framework> {
                let $value = self;
                $output
            }
        }

        impl $crate::layer::IntoOutput<$framework> for $type {
            fn into_output(self) -> $crate::layer::Result<$crate::layer::Output<$framework>> {
                Ok($crate::layer::OutputLike::output(self))
            }
        }
    };
}
