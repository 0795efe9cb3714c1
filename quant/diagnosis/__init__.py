"""Why a model is slow, or has drifted: profile, drift op by op, composition."""
