"""All forecasters, known to transformers by the model_type of their config.json: AutoModel reads their folders."""

from transformers import AutoConfig, AutoModel

from llm_finetuner.models.linear_forecaster import LinearForecaster
from llm_finetuner.models.mean_forecaster import MeanForecaster
from llm_finetuner.models.naive import Naive
from llm_finetuner.models.patch_forecaster import PatchForecaster
from llm_finetuner.models.time_llm import TimeLLM

WITHOUT_BLOCKS = (LinearForecaster, MeanForecaster, Naive)

for _model in (LinearForecaster, Naive, PatchForecaster, TimeLLM):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
