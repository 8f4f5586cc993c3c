"""The actions of SQS, by what they act on."""
